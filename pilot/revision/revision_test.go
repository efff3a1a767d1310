package revision

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// steps drives a tracker and writes what it decides.
type steps struct {
	*Tracker
	now time.Time
	out []string
}

func newSteps(s Saved) *steps { return &steps{Tracker: New(s), now: start} }

func (s *steps) propose(hash string) {
	r, publish := s.Propose(hash, s.now, s.now)
	s.out = append(s.out, fmt.Sprintf("%d %s publish=%t", r.Number, r.State, publish))
}

// live connects the client "a", and proposes content that it takes.
func (s *steps) live(hash string) {
	s.Connected("a")
	s.propose(hash)
	r, _ := s.Serving()
	s.Acked("a", r.Number, s.now)
}

func (s *steps) refuse(number uint64) {
	r, ok := s.Refused(number, Rejection{Client: "c", Detail: "bad"})
	s.out = append(s.out, fmt.Sprintf("back to %d %t", r.Number, ok))
}

func (s *steps) states() string {
	var list []string
	for _, r := range s.Revisions() {
		list = append(list, fmt.Sprintf("%d %s", r.Number, r.State))
	}
	return strings.Join(list, ", ")
}

func TestTracker(t *testing.T) {
	for _, tc := range []struct {
		name    string
		saved   Saved
		do      func(s *steps)
		out     []string
		states  string
		serving uint64
	}{
		{
			name: "live when every client has it",
			do: func(s *steps) {
				s.Connected("a")
				s.Connected("b")
				s.propose("x")
				s.Acked("a", 1, s.now)
				s.Acked("b", 1, s.now)
			},
			out:     []string{"1 pending publish=true"},
			states:  "1 live",
			serving: 1,
		},
		{
			name:    "pending while one has not",
			do:      func(s *steps) { s.Connected("a"); s.Connected("b"); s.propose("x"); s.Acked("a", 1, s.now) },
			out:     []string{"1 pending publish=true"},
			states:  "1 pending",
			serving: 1,
		},
		{
			name: "live when the one that has not goes away",
			do: func(s *steps) {
				s.Connected("a")
				s.Connected("b")
				s.propose("x")
				s.Acked("a", 1, s.now)
				s.Disconnected("b", s.now)
			},
			out:     []string{"1 pending publish=true"},
			states:  "1 live",
			serving: 1,
		},
		{
			name:    "pending without any client",
			do:      func(s *steps) { s.propose("x") },
			out:     []string{"1 pending publish=true"},
			states:  "1 pending",
			serving: 1,
		},
		{
			name:    "live without any client if none is expected",
			do:      func(s *steps) { s.propose("x"); s.Expect(false, s.now) },
			out:     []string{"1 pending publish=true"},
			states:  "1 live",
			serving: 1,
		},
		{
			name: "superseded by a newer one",
			do: func(s *steps) {
				s.Connected("a")
				s.propose("x")
				s.propose("y")
				s.Acked("a", 1, s.now)
				s.Acked("a", 2, s.now)
			},
			out:     []string{"1 pending publish=true", "2 pending publish=true"},
			states:  "2 live, 1 superseded",
			serving: 2,
		},
		{
			name: "rejected: the last live one again, the content not tried again until the files change",
			do: func(s *steps) {
				s.live("x")
				s.propose("y")
				s.refuse(2)
				s.refuse(2)
				s.propose("y")
				s.propose("z")
			},
			out:     []string{"1 pending publish=true", "2 pending publish=true", "back to 1 true", "back to 0 false", "2 rejected publish=false", "3 pending publish=true"},
			states:  "3 pending, 2 rejected, 1 live",
			serving: 3,
		},
		{
			name:    "rejected, and the files go back to what is served",
			do:      func(s *steps) { s.live("x"); s.propose("y"); s.refuse(2); s.propose("x"); s.propose("y") },
			out:     []string{"1 pending publish=true", "2 pending publish=true", "back to 1 true", "1 live publish=false", "3 pending publish=true"},
			states:  "3 pending, 2 rejected, 1 live",
			serving: 3,
		},
		{
			name:    "rejected with nothing good before",
			do:      func(s *steps) { s.Connected("a"); s.propose("x"); s.refuse(1) },
			out:     []string{"1 pending publish=true", "back to 0 false"},
			states:  "1 rejected",
			serving: 1,
		},
		{
			name:    "a client that comes later does not take a live one back",
			do:      func(s *steps) { s.live("x"); s.propose("y"); s.Acked("a", 2, s.now); s.Connected("b"); s.refuse(2) },
			out:     []string{"1 pending publish=true", "2 pending publish=true", "back to 0 false"},
			states:  "2 live, 1 live",
			serving: 2,
		},
		{
			name:    "a superseded one that is refused does not take the newest back",
			do:      func(s *steps) { s.live("x"); s.propose("y"); s.propose("z"); s.refuse(2) },
			out:     []string{"1 pending publish=true", "2 pending publish=true", "3 pending publish=true", "back to 0 false"},
			states:  "3 pending, 2 rejected, 1 live",
			serving: 3,
		},
		{
			name:    "the same content after a restart keeps its number",
			saved:   Saved{Number: 7, Hash: "x"},
			do:      func(s *steps) { s.propose("x") },
			out:     []string{"7 pending publish=true"},
			states:  "7 pending",
			serving: 7,
		},
		{
			name:    "other content after a restart gets the next",
			saved:   Saved{Number: 7, Hash: "x"},
			do:      func(s *steps) { s.propose("y") },
			out:     []string{"8 pending publish=true"},
			states:  "8 pending",
			serving: 8,
		},
		{
			name:    "a number that was made out in a damaged file",
			saved:   Saved{Number: 7},
			do:      func(s *steps) { s.propose("x") },
			out:     []string{"8 pending publish=true"},
			states:  "8 pending",
			serving: 8,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSteps(tc.saved)
			tc.do(s)
			if !slices.Equal(s.out, tc.out) {
				t.Errorf("decided %q, want %q", s.out, tc.out)
			}
			if got := s.states(); got != tc.states {
				t.Errorf("states %q, want %q", got, tc.states)
			}
			if r, _ := s.Serving(); r.Number != tc.serving {
				t.Errorf("serves %d, want %d", r.Number, tc.serving)
			}
		})
	}
}

func TestBackToTheGoodContentKeepsItsNumberOverARestart(t *testing.T) {
	s := newSteps(Saved{})
	s.live("x")
	s.propose("y")
	s.refuse(2)
	s.propose("x")
	again := newSteps(s.Saved())
	again.propose("x")
	again.propose("z")
	want := []string{"1 pending publish=true", "3 pending publish=true"}
	if !slices.Equal(again.out, want) {
		t.Errorf("decided %q, want %q", again.out, want)
	}
}

func TestTimeToLiveCountsFromTheWrite(t *testing.T) {
	tr := New(Saved{})
	tr.Connected("a")
	tr.Propose("x", start, start.Add(30*time.Millisecond))
	tr.Acked("a", 1, start.Add(80*time.Millisecond))
	if r, _ := tr.Serving(); r.TimeToLive != 80*time.Millisecond {
		t.Errorf("time to live is %v", r.TimeToLive)
	}
}

// TestAnySequence checks what holds after any sequence of events: numbers rise,
// at most one revision is pending and it is the one being served, what is served
// is never rejected while there is a good one, and a revision is live only if
// every client then connected had it.
func TestAnySequence(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 7))
		tr := New(Saved{})
		acked := map[int]uint64{}
		for step := range 200 {
			now := start.Add(time.Duration(step) * time.Second)
			c := r.IntN(4)
			switch r.IntN(6) {
			case 0:
				tr.Propose(fmt.Sprint(r.IntN(5)), now, now)
			case 1:
				tr.Connected(c)
				acked[c] = 0
			case 2:
				tr.Disconnected(c, now)
				delete(acked, c)
			case 3, 4:
				s, ok := tr.Serving()
				if _, connected := acked[c]; !ok || !connected {
					continue
				}
				acked[c] = s.Number
				if tr.Acked(c, s.Number, now) {
					for other, n := range acked {
						if n != s.Number {
							t.Fatalf("seed %d: revision %d went live, client %d has %d", seed, s.Number, other, n)
						}
					}
				}
			case 5:
				if s, ok := tr.Serving(); ok {
					tr.Refused(s.Number, Rejection{Client: "c"})
				}
			}
			check(t, seed, tr)
		}
	}
}

func check(t *testing.T, seed uint64, tr *Tracker) {
	t.Helper()
	s, ok := tr.Serving()
	if !ok {
		return
	}
	list := tr.Revisions()
	for i, r := range list {
		if i > 0 && r.Number >= list[i-1].Number {
			t.Fatalf("seed %d: numbers do not rise: %d after %d", seed, list[i-1].Number, r.Number)
		}
		if r.State == Pending && r.Number != s.Number {
			t.Fatalf("seed %d: revision %d is pending and %d is served", seed, r.Number, s.Number)
		}
		if r.State == Rejected && r.Rejection == nil {
			t.Fatalf("seed %d: revision %d is rejected without a reason", seed, r.Number)
		}
	}
	if tr.good != nil && s.State == Rejected {
		t.Fatalf("seed %d: a rejected revision is served although there is a good one", seed)
	}
	if len(list) > maxRevisions {
		t.Fatalf("seed %d: %d revisions are kept", seed, len(list))
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "revision.json")
	if s, err := Load(path); err != nil || s != (Saved{}) {
		t.Fatalf("no file: %v, %v", s, err)
	}
	want := Saved{Number: 42, Hash: "abc"}
	if err := Save(path, want); err != nil {
		t.Fatal(err)
	}
	if s, err := Load(path); err != nil || s != want {
		t.Fatalf("read back %v, %v", s, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
}

func TestCorruptFileIsSetAside(t *testing.T) {
	for _, tc := range []struct {
		text   string
		number uint64
	}{
		{`{"number": 42, "hash": "ab`, 42},
		{`{"number": 42, "hash": "abc"} {}`, 42},
		{`{"number": 42}`, 42},
		{`{"number": -1, "hash": "x"}`, 0},
		{`{"number": 99999999999999999999, "hash": "x"}`, 0},
		{``, 0},
		{"\x00\x00\x00", 0},
	} {
		path := filepath.Join(t.TempDir(), "revision.json")
		if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Load(path)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) {
			t.Errorf("%q: %v", tc.text, err)
			continue
		}
		if s != (Saved{Number: tc.number}) {
			t.Errorf("%q: goes on from %v, want %d", tc.text, s, tc.number)
		}
		if kept, err := os.ReadFile(corrupt.Aside); err != nil || string(kept) != tc.text {
			t.Errorf("%q: set aside: %q, %v", tc.text, kept, err)
		}
		if s, err := Load(path); err != nil || s != (Saved{}) {
			t.Errorf("%q: second load: %v, %v", tc.text, s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"number":1,"hash":"x"}`))
	f.Add([]byte(`{"number":`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := parse(data); err == nil && (s.Number == 0 || s.Hash == "") {
			t.Errorf("%q gives %v", data, s)
		}
		if s := salvage(data); s.Hash != "" || s.Number > 1<<63-1 {
			t.Errorf("%q gives %v", data, s)
		}
	})
}
