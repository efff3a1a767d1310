package decider_test

import (
	"slices"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/decider"
)

func TestKeepNewest(t *testing.T) {
	start := time.Unix(0, 0)
	at := func(name, ref string, seconds, weight int) decider.Retired {
		until := start.Add(time.Duration(seconds) * time.Second)
		return decider.Retired{Name: name, Ref: ref, Until: until, Weight: weight, Most: 2}
	}
	for name, c := range map[string]struct {
		list    []decider.Retired
		room    int
		want    []string
		dropped int
	}{
		"nothing":                    {room: 1},
		"the newest first":           {list: []decider.Retired{at("p", "old", 1, 1), at("p", "new", 2, 1)}, room: 2, want: []string{"new", "old"}},
		"of one time, by reference":  {list: []decider.Retired{at("p", "b", 1, 1), at("p", "a", 1, 1)}, room: 2, want: []string{"a", "b"}},
		"no more than a policy may":  {list: []decider.Retired{at("p", "1", 1, 1), at("p", "2", 2, 1), at("p", "3", 3, 1), at("q", "4", 0, 1)}, room: 9, want: []string{"3", "2", "4"}, dropped: 1},
		"no more than there is room": {list: []decider.Retired{at("p", "1", 1, 3), at("q", "2", 2, 3)}, room: 5, want: []string{"2"}, dropped: 1},
		"a small one still fits":     {list: []decider.Retired{at("p", "large", 2, 6), at("p", "1", 1, 2), at("p", "0", 0, 3)}, room: 5, want: []string{"1", "0"}, dropped: 1},
	} {
		t.Run(name, func(t *testing.T) {
			kept, dropped := decider.KeepNewest(c.list, c.room, func(r decider.Retired) decider.Retired { return r })
			var refs []string
			for _, r := range kept {
				refs = append(refs, r.Ref)
			}
			if !slices.Equal(refs, c.want) || dropped != c.dropped {
				t.Errorf("kept %v, let go of %d, want %v and %d", refs, dropped, c.want, c.dropped)
			}
		})
	}
}
