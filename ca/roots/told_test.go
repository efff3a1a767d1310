package roots_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/roots"
)

// through gives what another authority makes of what one tells.
func through(t *testing.T, s roots.State, reports []roots.Report, leaves []roots.Leaf) []roots.Report {
	t.Helper()
	var out []roots.Report
	for _, told := range roots.Tell(s, reports) {
		data, err := json.Marshal(told)
		if err != nil {
			t.Fatal(err)
		}
		var read roots.Told
		if err := json.Unmarshal(data, &read); err != nil {
			t.Fatal(err)
		}
		out = append(out, s.Rotation.Heard(read, roots.HoldersOf(leaves), start)...)
	}
	return out
}

// Whatever watchers say, and to however many authorities: the gate waits for the same
// holders, for the same reason, as if all had said it to one.
func TestToldIsAsGoodAsHeard(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6)) //nolint:gosec // which cases are tried
	for range 300 {
		s := begun(t, roots.How{})
		if random.IntN(2) == 0 {
			s = advanced(t, s)
		}
		var leaves []roots.Leaf
		var all []roots.Report
		split := make([][]roots.Report, 1+random.IntN(4))
		for n := range 1 + random.IntN(400) {
			id := fmt.Sprintf("spiffe://example.org/writ/node/n%d", n)
			leaves = append(leaves, own(id, []string{"old", "new"}[random.IntN(2)], time.Hour))
			for range random.IntN(3) { // none, one or two watchers of that identity
				r := roots.Report{Holder: id, Acknowledged: uint64(random.IntN(5)), Authorities: [][]string{nil, {"old"}, {"new"}, {"old", "new"}, {""}}[random.IntN(5)], Since: start}
				to := random.IntN(len(split))
				all, split[to] = append(all, r), append(split[to], r)
			}
		}
		told := split[0] // those of the one that judges
		for _, reports := range split[1:] {
			told = append(told, through(t, s, reports, leaves)...)
		}
		want, got := roots.Gate(s, roots.Facts{Leaves: leaves, Reports: all}, start), roots.Gate(s, roots.Facts{Leaves: leaves, Reports: told}, start)
		if !sameHolders(want, got) {
			t.Fatalf("%+v\nas told:\n%+v", want, got)
		}
	}
}

// sameHolders tells whether gates wait for the same. Which of two reasons of one holder
// is named depends on the order of its watchers.
func sameHolders(a, b []roots.Hold) bool {
	names := func(holds []roots.Hold) (out []string) {
		for _, h := range holds {
			connected := ""
			if h.Reason == "is not connected" {
				connected = h.Reason
			}
			out = append(out, h.Holder+connected)
		}
		return out
	}
	return reflect.DeepEqual(names(a), names(b))
}

// What is told is small, also of 5,000 watchers, and no part is much larger than
// another. Those who hold the gate up are named with what they wait for.
func TestToldIsSmall(t *testing.T) {
	s := begun(t, roots.How{})
	var reports []roots.Report
	for n := range 5000 {
		reports = append(reports, roots.Report{Holder: fmt.Sprintf("spiffe://example.org/writ/node/n%d", n), Acknowledged: uint64(n % 3), Waiting: []string{"sidecar~reviews"}, Since: start})
	}
	total, largest, detailed := 0, 0, 0
	for _, told := range roots.Tell(s, reports) {
		data, err := json.Marshal(told)
		if err != nil {
			t.Fatal(err)
		}
		total, largest, detailed = total+len(data), max(largest, len(data)), detailed+len(told.Reports)
	}
	t.Logf("%d bytes in %d parts, the largest of %d", total, roots.Parts, largest)
	if total > 110_000 || largest > 9_000 || detailed < 16 {
		t.Errorf("%d bytes, the largest part has %d, %d reports are told word by word", total, largest, detailed)
	}
}

// Another authority holds the first gate up until it could sign, and any gate until it
// has the state.
func TestGateWaitsForReplicas(t *testing.T) {
	s := begun(t, roots.How{})
	for name, tc := range map[string]struct {
		state   roots.State
		replica roots.Replica
		want    string
	}{
		"ready":               {s, roots.Replica{Taken: true}, ""},
		"without the state":   {s, roots.Replica{}, "has not taken over where the rotation stands"},
		"without the key":     {s, roots.Replica{Taken: true, Lacks: "it is gone"}, "cannot sign with the new root: it is gone"},
		"draining, no state":  {advanced(t, s), roots.Replica{}, "has not taken over where the rotation stands"},
		"draining, no key":    {advanced(t, s), roots.Replica{Taken: true, Lacks: "it is gone"}, ""},
		"no rotation any way": {roots.First(older), roots.Replica{}, ""},
	} {
		tc.replica.Name, tc.replica.Since = "replica r1 on h1", start
		got := roots.Gate(tc.state, roots.Facts{Replicas: []roots.Replica{tc.replica}}, start)
		switch {
		case tc.want == "" && len(got) > 0, tc.want != "" && (len(got) != 1 || got[0].Reason != tc.want || got[0].Holder != "replica r1 on h1"):
			t.Errorf("%s: %+v", name, got)
		}
	}
}
