package roots_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/roots"
)

const (
	agent    = "spiffe://example.org/writ/node/n1"
	pilot    = "spiffe://example.org/writ/pilot"
	workload = "spiffe://example.org/ns/default/sa/reviews"
)

var (
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	older = roots.Authority{KeyID: "old", Certificate: []byte("o")}
	newer = roots.Authority{KeyID: "new", Certificate: []byte("n")}
)

func begun(t *testing.T, how roots.How) roots.State {
	t.Helper()
	s, err := roots.First(older).Begin(newer, "admin uid=0", how, start)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func advanced(t *testing.T, s roots.State, gate ...roots.Hold) roots.State {
	t.Helper()
	s, err := s.Advance(gate, start.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// own is a certificate of a node agent or service, for itself.
func own(id, issuer string, life time.Duration) roots.Leaf {
	return roots.Leaf{Identity: id, Owner: id, Issuer: issuer, NotAfter: start.Add(life)}
}

func TestStepByStep(t *testing.T) {
	s := begun(t, roots.How{})
	if s.Active != "old" || len(s.Authorities) != 2 || s.Sequence != 2 || s.Rotation.Step != roots.Distributing || s.Check() != nil {
		t.Fatalf("begun: %+v, %v", s, s.Check())
	}
	s = advanced(t, s)
	if s.Active != "new" || len(s.Authorities) != 2 || s.Sequence != 3 || s.Rotation.Step != roots.Draining || s.Rotation.Sequence != 3 || s.Check() != nil {
		t.Fatalf("activated: %+v, %v", s, s.Check())
	}
	s = advanced(t, s)
	if s.Active != "new" || len(s.Authorities) != 1 || s.Sequence != 4 || s.Rotation != nil || s.Last.Step != roots.Done || s.Check() != nil {
		t.Fatalf("done: %+v, %v", s, s.Check())
	}
	again, err := s.Begin(roots.Authority{KeyID: "third"}, "", roots.How{}, start)
	if err != nil || again.Rotation.Old != "new" {
		t.Fatalf("again: %+v, %v", again.Rotation, err)
	}
}

func TestAbort(t *testing.T) {
	s, err := begun(t, roots.How{}).Abort(start)
	if err != nil || s.Active != "old" || len(s.Authorities) != 1 || s.Sequence != 3 || s.Last.Step != roots.Aborted || s.Check() != nil {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := advanced(t, begun(t, roots.How{})).Abort(start); !errors.Is(err, roots.ErrRefused) || !strings.Contains(err.Error(), "signs already") {
		t.Errorf("after activation: %v", err)
	}
	if _, err := roots.First(older).Abort(start); !errors.Is(err, roots.ErrRefused) {
		t.Errorf("without a rotation: %v", err)
	}
}

// A compromised root is out of the bundle in the very change in which the new one
// begins to sign.
func TestCompromised(t *testing.T) {
	s := advanced(t, begun(t, roots.How{Compromised: true}), roots.Hold{Holder: pilot})
	if s.Active != "new" || len(s.Authorities) != 1 || s.Rotation != nil || s.Last.Step != roots.Done || len(s.Last.Skipped) != 1 || s.Check() != nil {
		t.Fatalf("%+v", s)
	}
	// It can be found out halfway.
	s, err := advanced(t, begun(t, roots.How{})).Continue(roots.How{Compromised: true})
	if err != nil || !s.Rotation.May([]roots.Hold{{}}) {
		t.Fatalf("%+v, %v", s.Rotation, err)
	}
}

func TestBeginRefuses(t *testing.T) {
	if _, err := begun(t, roots.How{}).Begin(roots.Authority{KeyID: "third"}, "", roots.How{}, start); !errors.Is(err, roots.ErrRefused) {
		t.Errorf("a second rotation: %v", err)
	}
	if _, err := roots.First(older).Begin(older, "", roots.How{}, start); err == nil {
		t.Error("the same root again")
	}
	if _, err := roots.First(older).Continue(roots.How{}); !errors.Is(err, roots.ErrRefused) {
		t.Errorf("continue without a rotation: %v", err)
	}
	if _, err := roots.First(older).Advance(nil, start); !errors.Is(err, roots.ErrRefused) {
		t.Errorf("advance without a rotation: %v", err)
	}
}

func TestMay(t *testing.T) {
	shut := []roots.Hold{{Holder: pilot}}
	for _, tc := range []struct {
		how        roots.How
		gate       []roots.Hold
		want, then bool // then: after Continue with the same
	}{
		{roots.How{}, nil, true, true},
		{roots.How{}, shut, false, false},
		{roots.How{Force: true}, shut, true, true},
		{roots.How{Compromised: true}, shut, true, true},
		{roots.How{Manual: true}, nil, false, true},
		{roots.How{Manual: true}, shut, false, false},
		{roots.How{Manual: true, Force: true}, shut, false, true},
	} {
		s := begun(t, tc.how)
		if got := s.Rotation.May(tc.gate); got != tc.want {
			t.Errorf("%+v with %d holds: %v", tc.how, len(tc.gate), got)
		}
		s, err := s.Continue(tc.how)
		if err != nil || s.Rotation.May(tc.gate) != tc.then {
			t.Errorf("%+v with %d holds, continued: %v, %v", tc.how, len(tc.gate), !tc.then, err)
		}
		if tc.how.Manual && tc.then && advanced(t, s).Rotation.May(nil) {
			t.Errorf("%+v: one permission opened two gates", tc.how)
		}
	}
}

func TestGate(t *testing.T) {
	const hour = time.Hour
	minted := roots.Leaf{Identity: workload, Issuer: "old", NotAfter: start.Add(hour)}
	served := roots.Leaf{Identity: workload, Owner: agent, Issuer: "old", NotAfter: start.Add(hour)}
	type report = roots.Report
	for _, tc := range []struct {
		name     string
		draining bool
		facts    roots.Facts
		want     []string // holder and reason
	}{
		{"nobody", false, roots.Facts{}, nil},
		{"not connected", false, roots.Facts{Leaves: []roots.Leaf{own(agent, "old", hour)}}, []string{agent + " is not connected"}},
		{"expired", false, roots.Facts{Leaves: []roots.Leaf{own(agent, "old", 0)}}, nil},
		{"behind", false, roots.Facts{
			Leaves:  []roots.Leaf{own(agent, "old", hour), own(pilot, "old", hour)},
			Reports: []report{{Holder: agent, Acknowledged: 1, Waiting: []string{"p1"}}, {Holder: pilot, Acknowledged: 2}},
		}, []string{agent + " has not acknowledged bundle 2: p1"}},
		{"ahead", false, roots.Facts{Leaves: []roots.Leaf{own(agent, "old", hour)}, Reports: []report{{Holder: agent, Acknowledged: 7}}}, nil},
		{"one of two processes behind", false, roots.Facts{
			Leaves:  []roots.Leaf{own(pilot, "old", hour)},
			Reports: []report{{Holder: pilot, Acknowledged: 2}, {Holder: pilot}},
		}, []string{pilot + " has not acknowledged bundle 2"}},
		{"who has no certificate does not count", false, roots.Facts{Reports: []report{{Holder: agent}}}, nil},
		{"workloads come by their node", false, roots.Facts{Leaves: []roots.Leaf{served, minted}}, nil},

		{"all under the new", true, roots.Facts{Leaves: []roots.Leaf{own(agent, "new", hour), own(pilot, "new", hour)}}, nil},
		{"uses the old", true, roots.Facts{
			Leaves:  []roots.Leaf{own(agent, "old", hour)},
			Reports: []report{{Holder: agent, Acknowledged: 3, Authorities: []string{"new", "old"}, Waiting: []string{"p2"}}},
		}, []string{agent + " uses certificates of the old root: p2"}},
		{"may use the old", true, roots.Facts{
			Leaves:  []roots.Leaf{own(agent, "", hour)},
			Reports: []report{{Holder: agent, Acknowledged: 3, Authorities: []string{""}}},
		}, []string{agent + " uses certificates of the old root"}},
		{"has live ones and uses none", true, roots.Facts{
			Leaves:  []roots.Leaf{own(agent, "old", hour), own(agent, "new", hour), served},
			Reports: []report{{Holder: agent, Acknowledged: 3, Authorities: []string{"new"}}},
		}, nil},
		{"says so before it knows", true, roots.Facts{
			Leaves:  []roots.Leaf{own(agent, "old", hour)},
			Reports: []report{{Holder: agent, Acknowledged: 2, Authorities: []string{"new"}}},
		}, []string{agent + " has not acknowledged bundle 3"}},
		{
			"a node that is gone leaves its workloads' certificates", true,
			roots.Facts{Leaves: []roots.Leaf{served}},
			[]string{workload + " has a certificate of the old root and nobody who renews it"},
		},
		{"minted", true, roots.Facts{Leaves: []roots.Leaf{minted}}, []string{workload + " has a certificate of the old root and nobody who renews it"}},
		{"minted, expired", true, roots.Facts{Leaves: []roots.Leaf{{Identity: workload, Issuer: "old", NotAfter: start}}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := begun(t, roots.How{})
			if tc.draining {
				s = advanced(t, s)
			}
			var got []string
			for _, h := range roots.Gate(s, tc.facts, start) {
				text := h.Holder + " " + h.Reason
				if len(h.Proxies) > 0 {
					text += ": " + strings.Join(h.Proxies, ", ")
				}
				got = append(got, text)
				if !h.Until.Equal(start.Add(hour)) {
					t.Errorf("%s: until %s", text, h.Until)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	if got := roots.Gate(roots.First(older), roots.Facts{Leaves: []roots.Leaf{own(agent, "old", hour)}}, start); got != nil {
		t.Errorf("without a rotation: %v", got)
	}
}

func TestCheck(t *testing.T) {
	good := begun(t, roots.How{})
	for name, spoil := range map[string]func(*roots.State){
		"no sequence":        func(s *roots.State) { s.Sequence = 0 },
		"no authorities":     func(s *roots.State) { s.Authorities = nil },
		"one is gone":        func(s *roots.State) { s.Authorities = s.Authorities[:1] },
		"twice":              func(s *roots.State) { s.Authorities[1] = s.Authorities[0] },
		"active is unknown":  func(s *roots.State) { s.Active = "third" },
		"the wrong one":      func(s *roots.State) { s.Active = "new" },
		"step is unknown":    func(s *roots.State) { s.Rotation.Step = "x" },
		"rotation to itself": func(s *roots.State) { s.Rotation.New = "old" },
		"without a rotation": func(s *roots.State) { s.Rotation = nil },
	} {
		data, err := json.Marshal(good)
		if err != nil {
			t.Fatal(err)
		}
		var s roots.State
		if err := json.Unmarshal(data, &s); err != nil || !reflect.DeepEqual(s, good) {
			t.Fatalf("what is read is not what was written: %+v, %v", s, err)
		}
		spoil(&s)
		if s.Check() == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// A forced rotation of a big mesh fits into its document.
func TestSkippedIsBounded(t *testing.T) {
	gate := make([]roots.Hold, 5000)
	for i := range gate {
		gate[i] = roots.Hold{Holder: fmt.Sprintf("spiffe://example.org/writ/node/n%d", i), Proxies: make([]string, 100)}
	}
	s := advanced(t, begun(t, roots.How{Force: true}), gate...)
	if data, err := json.Marshal(s); err != nil || len(data) > 64<<10 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

// Whatever operators and watchers do, in whatever order: who signs is in the
// bundle, the sequence rises with each change of the bundle and with nothing else,
// no root signs that a connected holder has not acknowledged, none is dropped that
// one of them uses, and each state can be read again.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		s := roots.First(older)
		reports := []roots.Report{{Holder: agent, Authorities: []string{"old"}}, {Holder: pilot, Authorities: []string{"old"}}}
		made := 0
		for step := range 60 {
			now := start.Add(time.Duration(step) * time.Second)
			next, err := s, error(nil)
			advance := false
			switch r.IntN(6) {
			case 0:
				made++
				next, err = s.Begin(roots.Authority{KeyID: fmt.Sprint("root", made)}, "", roots.How{Manual: r.IntN(4) == 0}, now)
			case 1:
				if r.IntN(4) == 0 {
					next, err = s.Abort(now)
				}
			case 2: // a watcher takes the bundle
				reports[r.IntN(2)].Acknowledged = s.Sequence
			case 3: // a watcher renews, with what the authority signs
				reports[r.IntN(2)].Authorities = []string{s.Active}
			case 4:
				next, err = s.Continue(roots.How{})
			default:
				leaves := []roots.Leaf{own(agent, s.Active, time.Hour), own(pilot, s.Active, time.Hour)}
				for i, l := range leaves { // those that they had before live on
					leaves = append(leaves, roots.Leaf{Identity: l.Identity, Owner: l.Owner, Issuer: reports[i].Authorities[0], NotAfter: l.NotAfter})
				}
				gate := roots.Gate(s, roots.Facts{Leaves: leaves, Reports: reports}, now)
				if s.Rotation != nil && s.Rotation.May(gate) {
					next, err = s.Advance(gate, now)
					advance = true
				}
			}
			if err != nil {
				if !reflect.DeepEqual(next, s) {
					t.Fatalf("seed %d: an error changed the state: %v", seed, err)
				}
				continue
			}
			if err := next.Check(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			changed := !reflect.DeepEqual(next.Authorities, s.Authorities) || next.Active != s.Active
			if changed != (next.Sequence == s.Sequence+1) || !changed && next.Sequence != s.Sequence {
				t.Fatalf("seed %d: sequence %d after %d, changed: %v", seed, next.Sequence, s.Sequence, changed)
			}
			for _, rep := range reports {
				if _, known := next.Authority(rep.Authorities[0]); advance && !known {
					t.Fatalf("seed %d: %s uses %s, which was dropped", seed, rep.Holder, rep.Authorities[0])
				}
				if next.Active != s.Active && rep.Acknowledged < s.Sequence {
					t.Fatalf("seed %d: a root signs of which %s has not heard", seed, rep.Holder)
				}
			}
			s = next
		}
		if seed == 0 && s.Sequence < 3 {
			t.Fatal("nothing happened")
		}
	}
}
