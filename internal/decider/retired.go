package decider

import (
	"cmp"
	"slices"
	"time"
)

// Retired is a content of a policy in whose place another one is in force, or none. It
// decides for proxies whose routes go with it.
type Retired struct {
	// Name is the policy's, Ref what proxies name this content by.
	Name, Ref string
	// Until is when it decides no more.
	Until time.Time
	// Weight is how much room it takes, Most how many contents of its policy are kept.
	Weight, Most int
}

// KeepNewest brings what is retired into order, the newest first, and keeps of it what
// there is room for: what goes before its time is the oldest, first that of who has more
// than others. It also says how many it let go of. The list is used up.
func KeepNewest[C any](list []C, room int, of func(C) Retired) (kept []C, dropped int) {
	slices.SortFunc(list, func(a, b C) int {
		x, y := of(a), of(b)
		return cmp.Or(y.Until.Compare(x.Until), cmp.Compare(x.Ref, y.Ref))
	})
	count := make(map[string]int)
	kept = list[:0]
	for _, c := range list {
		if r := of(c); count[r.Name] < r.Most && r.Weight <= room {
			count[r.Name]++
			room -= r.Weight
			kept = append(kept, c)
		}
	}
	return kept, len(list) - len(kept)
}
