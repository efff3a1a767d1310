package replay

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/writ-mesh/writ/authz/recording"
	"github.com/writ-mesh/writ/pilot/model"
)

// Case is requests of one kind that are decided in one way.
type Case struct {
	From     string `json:"from"`
	Workload string `json:"workload"`
	Method   string `json:"method,omitempty"`
	Path     string `json:"path,omitempty"`
	// Count is how often they were seen.
	Count int    `json:"count"`
	Was   string `json:"was"`
	Now   string `json:"now"`
	// By is the rule, or why it is not known.
	By string `json:"by,omitempty"`
}

// Result is what came of a replay.
type Result struct {
	// Requests is how many were tried, Unchanged for how many nothing changes.
	Requests  int `json:"requests"`
	Unchanged int `json:"unchanged"`
	// Flips are decided otherwise. Unknown are those of which it cannot be told.
	Flips   []Case `json:"flips"`
	Unknown []Case `json:"unknown"`
}

// Collector gathers cases.
type collector struct {
	out   Result
	cases map[Case]int
}

func (c *collector) add(s *recording.Seen, now, by string) {
	was := refused
	if s.Allowed {
		was = allowed
	}
	c.out.Requests += s.Count
	if was == now {
		c.out.Unchanged += s.Count
		return
	}
	if c.cases == nil {
		c.cases = map[Case]int{}
	}
	c.cases[Case{From: caller(s), Workload: workload(s), Method: s.Method, Path: s.Path, Was: was, Now: now, By: by}] += s.Count
}

func caller(s *recording.Seen) string {
	if s.From == "" {
		return "outside"
	}
	return strings.TrimPrefix(s.From, "spiffe://")
}

// workload names where a request went: the replica's workload is not known of all, so
// it is the identity.
func workload(s *recording.Seen) string {
	parts := strings.Split(strings.TrimPrefix(s.To, "spiffe://"), "/")
	if len(parts) == 5 {
		return parts[2] + "/" + parts[4]
	}
	return s.To
}

func (c *collector) result() *Result {
	c.out.Flips, c.out.Unknown = []Case{}, []Case{}
	for _, k := range slices.SortedFunc(maps.Keys(c.cases), compare) {
		n := c.cases[k]
		k.Count = n
		if k.Now == unknown {
			c.out.Unknown = append(c.out.Unknown, k)
		} else {
			c.out.Flips = append(c.out.Flips, k)
		}
	}
	return &c.out
}

func compare(a, b Case) int {
	return cmp.Or(cmp.Compare(a.Now, b.Now), cmp.Compare(a.From, b.From), cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Method, b.Method), cmp.Compare(a.By, b.By))
}

// Source gives the requests of a recording, one after the other.
type Source func(func(*recording.Seen) error) error

// Candidate tells what a mesh would decide otherwise than was decided.
func Candidate(ctx context.Context, m *Mesh, from Source) (*Result, error) {
	var c collector
	err := from(func(s *recording.Seen) error {
		v := m.Decide(ctx, s)
		c.add(s, v.Outcome, v.By)
		return ctx.Err()
	})
	return c.result(), err
}

// Promotion tells whom a policy would refuse that only observes in the mesh before, and
// is enforced in the one after. What it would have refused is recorded of a RegoPolicy, as
// its decider said it, and so is what an AccessList would have whose entries are not in
// the files. Otherwise the rules and entries are asked, and what was said of them counts
// where they cannot tell. What is refused without it is left out.
func Promotion(ctx context.Context, before, after *Mesh, policy model.Ref, from Source) (*Result, error) {
	var c collector
	believed := policy.Kind == "RegoPolicy" || slices.ContainsFunc(after.mesh.AccessLists, func(l *model.AccessList) bool {
		return l.Ref == policy && after.elsewhere(l)
	})
	err := from(func(s *recording.Seen) error {
		if !s.Allowed || before.Decide(ctx, s).Outcome == refused {
			return ctx.Err()
		}
		i := slices.IndexFunc(s.Observed, func(rule string) bool { return names(rule, policy) })
		switch {
		case believed && i >= 0:
			c.add(s, refused, s.Observed[i])
		case believed:
			c.add(s, allowed, "")
		default:
			v := after.Decide(ctx, s)
			if v.Outcome == unknown && i >= 0 {
				v = Verdict{refused, s.Observed[i]}
			}
			c.add(s, v.Outcome, v.By)
		}
		return ctx.Err()
	})
	return c.result(), err
}

// names says whether a rule, as x-writ-denied-by has it, is one of a policy. The text
// for "no rule allows" lists policies.
func names(rule string, policy model.Ref) bool {
	kind, rest, _ := strings.Cut(rule, " ")
	list, _, _ := strings.Cut(rest, " ")
	return kind == policy.Kind && slices.Contains(strings.Split(list, ","), policy.Namespace+"/"+policy.Name)
}
