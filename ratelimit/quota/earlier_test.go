package quota_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/quota"
)

// edits is a policy default/q that is edited, and what is asked of it.
type edits struct {
	t     *testing.T
	now   time.Time
	kept  time.Duration
	table *quota.Table
	store *memory.Store
	n     int
}

func newEdits(t *testing.T) *edits {
	return &edits{t: t, now: time.Unix(1_800_000_000, 0), kept: time.Hour, table: &quota.Table{}, store: memory.New(0)}
}

// edit puts a content in force, and gives what proxies name it; without limits the policy is
// removed.
func (e *edits) edit(limits ...*configpb.Limit) string {
	e.t.Helper()
	return e.apply(policy("q", limits...))
}

func (e *edits) apply(p *configpb.QuotaPolicy) string {
	e.t.Helper()
	e.n++
	p.Fingerprint = fmt.Sprint(e.n)
	set := map[string]*configpb.QuotaPolicy{"default/q": p}
	if len(p.GetLimits()) == 0 {
		set = nil
	}
	next, err := quota.New(set, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	e.table, _ = next.After(e.table, e.now, e.now.Add(e.kept))
	return p.Ref()
}

// ask asks for hits of limit 0 for ann, by a content.
func (e *edits) ask(ref string, hits uint64, more ...string) limit.Outcome {
	e.t.Helper()
	pairs := append([]string{"writ.policy", ref, "writ.limit", "0"}, more...)
	l, m := e.table.Match(desc(append(pairs, "source.principal", "ann")...), e.now)
	if l == nil {
		e.t.Fatalf("%s met no limit", ref)
	}
	u, ok := l.Use(m, hits)
	if !ok {
		e.t.Fatalf("%s: nothing to say", ref)
	}
	var out [1]limit.Outcome
	if err := e.store.Decide(e.t.Context(), e.now, []limit.Use{u}, out[:]); err != nil {
		e.t.Fatal(err)
	}
	return out[0]
}

func (e *edits) pass(ref string, n int) (passed int) {
	e.t.Helper()
	for range n {
		if !e.ask(ref, 1).Over {
			passed++
		}
	}
	return passed
}

func byPrincipal(requests uint32, every time.Duration) *configpb.Limit {
	return per(requests, every, "source.principal")
}

// TestContentsAreNamed: a limit is the one of the content that is named, in force or
// replaced, for a while, and of what is not known the newest one.
func TestContentsAreNamed(t *testing.T) {
	e := newEdits(t)
	one := e.edit(byPrincipal(1, time.Second), byPrincipal(100, time.Second))
	e.now = e.now.Add(time.Minute)
	two := e.edit(byPrincipal(2, time.Second))
	for _, c := range []struct {
		after    time.Duration
		ref      string
		index    string
		requests uint32 // 0: no limit
		earlier  bool
		unknown  bool
	}{
		{0, one, "0", 1, true, false},
		{0, one, "1", 100, true, false},
		{0, two, "0", 2, false, false},
		{0, two, "1", 0, false, false},
		{0, "default/q", "0", 2, false, false},
		{0, "default/q@", "0", 2, false, true},
		{0, "default/q@3", "0", 2, false, true},
		{0, "default/q@3", "1", 0, false, true},
		{0, "default/q@2@2", "0", 2, false, true},
		{0, "default/p@2", "0", 0, false, true},
		{0, "@2", "0", 0, false, true},
		{time.Hour - 1, one, "0", 1, true, false},
		{time.Hour, one, "0", 2, false, true},
		{time.Hour, one, "1", 0, false, true},
	} {
		l, m := e.table.Match(desc("writ.policy", c.ref, "writ.limit", c.index), e.now.Add(c.after))
		if (l != nil) != (c.requests > 0) {
			t.Errorf("%s after %s: found %v", c.ref, c.after, l != nil)
			continue
		}
		if l != nil && (m.Rule.Requests() != c.requests || l.Earlier != c.earlier || m.Unknown != c.unknown) {
			t.Errorf("%s after %s: %d, earlier %v, unknown %v", c.ref, c.after, m.Rule.Requests(), l.Earlier, m.Unknown)
		}
		if l != nil && strings.Contains(l.ID+m.Key, "@") {
			t.Errorf("%s: %s, %s", c.ref, l.ID, m.Key)
		}
	}
	if ids := e.table.IDs(); len(ids) != 2 || e.table.Earlier() != 1 || len(e.table.Limits()) != 1 {
		t.Errorf("%v, %d earlier contents, %d limits in force", ids, e.table.Earlier(), len(e.table.Limits()))
	}
	if e.table.Unexpired(e.now.Add(time.Hour-1)) != e.table {
		t.Error("a content was forgotten before its time")
	}
	if after := e.table.Unexpired(e.now.Add(time.Hour)); after.Earlier() != 0 || len(after.IDs()) != 1 {
		t.Errorf("%d contents are kept after their time", after.Earlier())
	}
}

// TestCountersSurviveEdits: whatever is edited but the window, whichever content is named
// counts what all of them let pass. Nobody gets anything anew by an edit, and nobody is
// refused before the limit that he is asked about is used up.
func TestCountersSurviveEdits(t *testing.T) {
	const window = 30 * time.Second
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
		e := newEdits(t)
		type known struct {
			ref      string
			requests int
			observe  bool
		}
		var contents []known
		edit := func() {
			requests := random.IntN(20)
			p := policy("q", byPrincipal(uint32(requests), window)) //nolint:gosec // small
			p.Observe, p.Told = random.IntN(4) == 0, random.IntN(2) == 0
			p.Limits[0].Mode = []string{"", configpb.QuotaLeased, configpb.QuotaLocal, configpb.QuotaAssigned}[random.IntN(4)]
			if random.IntN(2) == 0 {
				p.Limits = append(p.Limits, byPrincipal(1, time.Hour))
			}
			contents = append(contents, known{e.apply(p), requests, p.GetObserve()})
			contents = contents[max(0, len(contents)-6):]
		}
		edit()
		var passed []time.Time
		for step := range 300 {
			if random.IntN(12) == 0 {
				edit()
			}
			e.now = e.now.Add(time.Duration(random.IntN(3000)) * time.Millisecond)
			used := 0
			for _, at := range passed {
				if e.now.Sub(at) < window {
					used++
				}
			}
			c := contents[random.IntN(len(contents))]
			out := e.ask(c.ref, 1)
			if out.Over != (used >= c.requests) {
				t.Fatalf("seed %d, step %d: %d of %d are used, and it is over: %v", seed, step, used, c.requests, out.Over)
			}
			if !out.Over {
				passed = append(passed, e.now)
			}
		}
	}
}

// TestWindowsAreEdited: by a content with another window than the newest has it is counted
// apart. The newest forgets nothing by it, and it lets never more pass than it says.
func TestWindowsAreEdited(t *testing.T) {
	e := newEdits(t)
	second := e.edit(byPrincipal(3, time.Second))
	e.pass(second, 2)
	hour := e.edit(byPrincipal(5, time.Hour))
	if got := e.pass(hour, 9); got != 3 {
		t.Errorf("%d of 5 an hour passed, of which 2 were used before the edit", got)
	}
	for range 60 {
		if got := e.pass(second, 9); got > 3 {
			t.Errorf("%d of 3 a second", got)
		}
		if got := e.pass(hour, 1); got != 0 {
			t.Error("who names the earlier window is free of the newest")
		}
		e.now = e.now.Add(time.Second)
	}
	minute := e.edit(byPrincipal(5, time.Minute)) // the hour before is forgotten but for a minute of it
	e.now = e.now.Add(2 * time.Minute)
	if got := e.pass(minute, 9); got != 5 {
		t.Errorf("%d of 5 a minute", got)
	}
	if got := e.pass(hour, 9); got != 5 {
		t.Errorf("%d of 5 an hour, counted apart", got)
	}
	if got := e.pass(minute, 9); got != 0 {
		t.Errorf("%d more of 5 a minute", got)
	}
	again := e.edit(byPrincipal(5, time.Hour))
	if got := e.pass(again, 9); got != 0 {
		t.Errorf("%d of 5 an hour, when it came back a moment after 5 passed", got)
	}
}

// TestWhatIsHeldSurvivesEdits: a request that began by one content and ends by it when
// another is in force frees its place, and its cost is charged, once.
func TestWhatIsHeldSurvivesEdits(t *testing.T) {
	held := func(hold string) []string { return []string{"writ.hold", hold} }
	done := func(hold string) []string { return []string{"writ.hold", hold, "writ.done", "1"} }
	t.Run("places", func(t *testing.T) {
		place := func(n uint32, timeout time.Duration) *configpb.Limit {
			l := byPrincipal(n, timeout)
			l.Algorithm = configpb.QuotaConcurrency
			return l
		}
		e := newEdits(t)
		one := e.edit(place(2, time.Minute))
		e.ask(one, 1, held("a")...)
		two := e.edit(place(3, time.Hour))
		e.ask(one, 1, held("b")...)
		if out := e.ask(one, 1, held("c")...); !out.Over {
			t.Error("3 of 2 are under way")
		}
		e.ask(two, 1, held("c")...)
		if out := e.ask(two, 1, held("d")...); !out.Over {
			t.Error("4 of 3 are under way")
		}
		e.ask(one, 1, done("a")...)
		e.ask("default/q@gone", 1, done("b")...) // a request that outlasted its content
		if out := e.ask(two, 0); out.Over || out.Remaining != 2 {
			t.Errorf("with one under way %+v", out)
		}
	})
	t.Run("costs", func(t *testing.T) {
		costs := func(n uint32, every time.Duration) *configpb.Limit {
			l := byPrincipal(n, every)
			l.Cost = &configpb.Cost{Reserve: 10, Expire: durationpb.New(time.Minute)}
			return l
		}
		e := newEdits(t)
		one := e.edit(costs(100, time.Hour))
		e.ask(one, 1, held("a")...)
		e.ask(one, 1, held("b")...)
		two := e.edit(costs(50, time.Hour))
		for range 2 { // once
			e.ask(one, 7, done("a")...)
		}
		if out := e.ask(two, 1, held("c")...); out.Over || out.Remaining != 50-10-7-10 {
			t.Errorf("%+v", out)
		}
		three := e.edit(costs(60, time.Minute))
		e.ask(one, 8, done("b")...)
		e.ask(two, 9, done("c")...)
		if out := e.ask(three, 1, held("d")...); out.Over || out.Remaining != 60-7-8-9-10 {
			t.Errorf("after an edit of the window %+v", out)
		}
	})
}

// TestEarlierAreBounded: in number for each policy, so that nobody pushes out what is
// another's, and in size. One edit of everything has room.
func TestEarlierAreBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	after := func(edits int, all func(i int) []*configpb.QuotaPolicy) (table *quota.Table, dropped int) {
		table = &quota.Table{}
		for i := range edits {
			set := map[string]*configpb.QuotaPolicy{}
			for _, p := range all(i) {
				set[p.GetNamespace()+"/"+p.GetName()] = p
			}
			next, err := quota.New(set, nil)
			if err != nil {
				t.Fatal(err)
			}
			var d int
			at := now.Add(time.Duration(i) * time.Second)
			table, d = next.After(table, at, at.Add(time.Minute))
			dropped += d
		}
		return table, dropped
	}
	content := func(name string, i int, limits ...*configpb.Limit) *configpb.QuotaPolicy {
		p := policy(name, limits...)
		p.Fingerprint = fmt.Sprint(i)
		return p
	}
	small := byPrincipal(1, time.Second)
	known := func(table *quota.Table, ref string) bool {
		_, m := table.Match(desc("writ.policy", ref, "writ.limit", "0"), now)
		return !m.Unknown && m.Key != ""
	}
	table, dropped := after(20, func(i int) []*configpb.QuotaPolicy {
		return []*configpb.QuotaPolicy{content("a", i, small), content("b", min(i, 1), small)}
	})
	if table.Earlier() != 9 || dropped != 11 || !known(table, "default/a@11") || known(table, "default/a@10") || !known(table, "default/b@0") {
		t.Errorf("edits of one policy leave %d, %d dropped", table.Earlier(), dropped)
	}
	large := byPrincipal(1, time.Second)
	large.Fair = &configpb.QuotaFair{Weights: map[string]uint32{}}
	for i := range configpb.MaxQuotaWeights {
		large.Fair.Weights[fmt.Sprint(i)] = 1
	}
	many := slices.Repeat([]*configpb.Limit{large}, configpb.MaxQuotaLimits) // 31 such policies are the bound
	table, dropped = after(2, func(i int) (all []*configpb.QuotaPolicy) {
		for j := range 100 {
			all = append(all, content(fmt.Sprint(j), i, many...))
		}
		return all
	})
	if table.Earlier() != 100 || dropped != 0 {
		t.Errorf("one edit of all leaves %d, %d dropped", table.Earlier(), dropped)
	}
	// New names each time: what is there at once is little, what was there is not.
	table, dropped = after(6, func(i int) (all []*configpb.QuotaPolicy) {
		for j := range 10 {
			all = append(all, content(fmt.Sprintf("%d-%d", i, j), 0, many...))
		}
		return all
	})
	if table.Earlier() != 41 || dropped != 9 || known(table, "default/0-9@0") || !known(table, "default/1-0@0") {
		t.Errorf("five sets that came and went leave %d, %d dropped", table.Earlier(), dropped)
	}
	// What comes back is in force, and nothing of it is kept twice.
	table, _ = after(3, func(i int) []*configpb.QuotaPolicy { return []*configpb.QuotaPolicy{content("a", i%2, small)} })
	if table.Earlier() != 1 || !known(table, "default/a@0") || !known(table, "default/a@1") {
		t.Errorf("an edit that was taken back leaves %d", table.Earlier())
	}
	if l, _ := table.Match(desc("writ.policy", "default/a@0", "writ.limit", "0"), now); l.Earlier {
		t.Error("what is in force counts as replaced")
	}
	// Without a time nothing is kept.
	before, err := quota.New(map[string]*configpb.QuotaPolicy{"default/a": content("a", 1, small)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if next, _ := (&quota.Table{}).After(before, now, now); next.Earlier() != 0 {
		t.Error("kept for no time")
	}
}
