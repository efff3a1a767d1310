package attest

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/fact"
)

// naive is what index.match has to find.
func naive(regs map[string]Registration, facts []string) []string {
	most := 0
	var out []string
	for id, r := range regs {
		n := len(slices.Compact(slices.Sorted(slices.Values(r.Facts))))
		if n < most || slices.ContainsFunc(r.Facts, func(f string) bool { return !slices.Contains(facts, f) }) {
			continue
		}
		if n > most {
			most, out = n, nil
		}
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// TestIndexFindsWhatASearchOfAllFinds after any sequence of changes.
func TestIndexFindsWhatASearchOfAllFinds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(most int) []string {
		var out []string
		for range 1 + rnd.IntN(most) {
			out = append(out, []string{"unix:uid:", "unix:gid:", "docker:name:n"}[rnd.IntN(3)]+fmt.Sprint(rnd.IntN(4)))
		}
		return out
	}
	x, regs := newIndex(), map[string]Registration{}
	for range 5000 {
		id := fmt.Sprint(rnd.IntN(60))
		if rnd.IntN(3) == 0 {
			x.remove(id)
			delete(regs, id)
			continue
		}
		r := Registration{ID: id, SPIFFEID: spiffeid.RequireFromString("spiffe://td/" + id), Facts: pick(4)}
		if err := x.put(r); err != nil {
			t.Fatal(err)
		}
		regs[id] = r
		facts := pick(8)
		var got []string
		for _, e := range x.match(facts) {
			got = append(got, e.id)
		}
		if want := naive(regs, facts); !slices.Equal(got, want) {
			t.Fatalf("%v: found %v, want %v", facts, got, want)
		}
	}
	for id := range regs {
		x.remove(id)
	}
	if len(x.numbers)+len(x.byKind)+len(x.byID) != 0 || len(x.free) != len(x.names) || slices.ContainsFunc(x.under, func(e *entry) bool { return e != nil }) {
		t.Errorf("after all were removed: %+v", x)
	}
}

func TestFullListReplaces(t *testing.T) {
	x := newIndex()
	put := func(ids ...string) {
		for _, id := range ids {
			if err := x.put(Registration{ID: id, SPIFFEID: spiffeid.RequireFromString("spiffe://td/" + id), Facts: []string{"unix:uid:1"}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("a", "b")
	x.listing = map[string]bool{}
	put("b", "c")
	if len(x.byID) != 3 {
		t.Error("something went before the list was complete")
	}
	x.sweep()
	x.sweep()
	if len(x.byID) != 2 || x.byID["a"] != nil {
		t.Errorf("%v", x.byID)
	}
	if err := x.put(Registration{ID: "d", Facts: []string{"future:kind:1"}}); err == nil || x.byID["d"] != nil {
		t.Error("a fact of an unknown kind is taken")
	}
}

// many are as many registrations as one agent has to hold, each of its own.
func many(n int) []Registration {
	out := make([]Registration, n)
	for i := range out {
		out[i] = Registration{
			ID:       fmt.Sprintf("%032x", i),
			SPIFFEID: spiffeid.RequireFromString(fmt.Sprintf("spiffe://cluster.local/ns/namespace-%d/sa/service-account-%d", i%100, i)),
			Facts:    []string{fmt.Sprintf("unix:uid:%d", i), fmt.Sprintf("unix:path:/srv/applications/%d/bin/server", i), "unix:gid:1000"},
		}
	}
	return out
}

// TestFiftyThousandRegistrationsAreSmall: of the 60 MiB that an agent with so many
// may have, the index takes less than half.
func TestFiftyThousandRegistrationsAreSmall(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	x := newIndex()
	for _, r := range many(50_000) {
		if err := x.put(r); err != nil {
			t.Fatal(err)
		}
	}
	got := int64(heap()) - int64(before)
	if got > 24<<20 {
		t.Errorf("50,000 registrations take %d KiB", got>>10)
	}
	t.Logf("50,000 registrations take %d KiB", got>>10)
	// However many there are, a look-up touches those of one rare fact.
	if e := x.under[x.numbers["unix:gid:1000"]]; e != nil && e.next != nil {
		t.Error("several registrations stand under a fact that all have")
	}
	runtime.KeepAlive(x)
}

func BenchmarkMatch(b *testing.B) {
	x := newIndex()
	for _, r := range many(50_000) {
		if err := x.put(r); err != nil {
			b.Fatal(err)
		}
	}
	facts := []string{"unix:uid:77", "unix:gid:1000", "unix:path:/srv/applications/77/bin/server", "unix:supplementary_gid:7"}
	b.ReportAllocs()
	for b.Loop() {
		if len(x.match(facts)) != 1 {
			b.Fatal("not found")
		}
	}
}

// TestKinds: every kind that a registration may have is found out here.
func TestKinds(t *testing.T) {
	own := []fact.Kind{
		kindUID, kindGID, kindSupplementaryGID, kindPath, kindSHA256, kindParentPath, kindContainerID,
		kindDockerLabel, kindDockerImage, kindDockerImageID, kindDockerName,
		kindPodUID, kindPodNamespace, kindPodAccount, kindPodName,
	}
	slices.Sort(own)
	all := fact.Kinds()
	slices.Sort(all)
	if !slices.Equal(own, all) {
		t.Errorf("%v, want %v", own, all)
	}
}
