package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/service"
	ratelimitservice "github.com/writ-mesh/writ/ratelimit"
)

// beReplica makes this test program a writ-ratelimit.
const beReplica = "WRIT_BENCH_BE_RATELIMIT"

func TestMain(m *testing.M) {
	if os.Getenv(beReplica) == "" {
		os.Exit(m.Run())
	}
	service.Main(service.Spec[ratelimitservice.Config]{
		Name: "writ-ratelimit", Default: ratelimitservice.DefaultConfig,
		Common:   func(c *ratelimitservice.Config) *service.Common { return &c.Common },
		Flags:    (*ratelimitservice.Config).Flags,
		Validate: (*ratelimitservice.Config).Validate,
		Run: func(ctx context.Context, c ratelimitservice.Config, rt *service.Runtime) error {
			s, err := ratelimitservice.New(c, rt)
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	})
}

// TestSoak is a soak of a few seconds, with two faults in it.
func TestSoak(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is missing (Debian package redis-server)")
		}
		t.Skip("redis-server is missing (Debian package redis-server)")
	}
	dir, err := os.MkdirTemp("", "soak") //nolint:usetesting // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Setenv(beReplica, "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	o := options{dir: dir, log: &out, length: 3 * time.Second, calm: 3 * time.Second, patience: 20 * time.Millisecond, rate: 300, seed: 2}
	if err := os.MkdirAll(filepath.Join(dir, "redis"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := newSoak(t.Context(), o, self)
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	if err := s.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.print(&out)
	s.away = 0 // on a machine that has no time for Redis that says nothing
	if err := s.failure(); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	if s.passed.Load() < 100 || s.refused.Load() < 10 || len(s.dealt) == 0 {
		t.Errorf("the soak asked for too little:\n%s", &out)
	}
}

// TestOracle: what it has to find, and what it must not take for wrong.
func TestOracle(t *testing.T) {
	const sec = time.Second
	sliding := soakRule{counts: slides, most: 2, window: sec, replicas: 2}
	gcra := soakRule{counts: bucket, most: 10, burst: 2, window: sec, replicas: 2}
	held := soakRule{counts: places, most: 2, window: 5 * sec, replicas: 2}
	// A step is when a request was sent and answered, in ms, and what was answered; it
	// ends a request instead if it is e, whose number is the time it was sent.
	type step struct {
		sent, answered int
		what           byte
	}
	for name, tc := range map[string]struct {
		rule           soakRule
		steps          []step
		wrong, lenient bool
	}{
		"within the limit":               {sliding, []step{{0, 1, 'p'}, {10, 11, 'p'}, {1010, 1011, 'p'}}, false, false},
		"one too much":                   {sliding, []step{{0, 1, 'p'}, {10, 11, 'p'}, {20, 21, 'p'}}, true, false},
		"perhaps a window later":         {sliding, []step{{0, 1, 'p'}, {10, 11, 'p'}, {990, 1005, 'p'}}, false, false},
		"more than all replicas may":     {sliding, []step{{0, 1, 'p'}, {2, 3, 'p'}, {4, 5, 'p'}, {6, 7, 'p'}, {8, 9, 'p'}, {10, 11, 'p'}}, true, true},
		"refused rightly":                {sliding, []step{{0, 1, 'p'}, {10, 11, 'p'}, {900, 901, 'r'}}, false, false},
		"refused with one left":          {sliding, []step{{10, 11, 'p'}, {900, 901, 'r'}}, true, false},
		"refused with nothing used":      {sliding, []step{{0, 1, 'r'}}, true, true},
		"refused a window later":         {sliding, []step{{0, 1, 'p'}, {10, 11, 'p'}, {1045, 1046, 'r'}}, true, false},
		"refused long after":             {sliding, []step{{0, 1, 'p'}, {10, 11, 'p'}, {5000, 5001, 'r'}}, true, true},
		"refused beside one under way":   {sliding, []step{{0, 1, 'p'}, {5, 0, 'b'}, {10, 11, 'r'}}, false, false},
		"refused beside one that failed": {sliding, []step{{0, 1, 'p'}, {5, 6, 'f'}, {10, 11, 'r'}}, false, false},
		"bucket":                         {gcra, []step{{0, 1, 'p'}, {2, 3, 'p'}, {4, 5, 'r'}}, false, false},
		"bucket with room":               {gcra, []step{{0, 1, 'p'}, {2, 3, 'p'}, {104, 105, 'r'}}, true, false},
		"bucket answered late":           {gcra, []step{{0, 1, 'p'}, {95, 104, 'p'}, {95, 106, 'r'}}, false, false},
		"bucket refuses first":           {gcra, []step{{0, 1, 'r'}}, true, true},
		"places":                         {held, []step{{0, 1, 'p'}, {2, 3, 'p'}, {4, 5, 'r'}}, false, false},
		"one place too much":             {held, []step{{0, 1, 'p'}, {2, 3, 'p'}, {4, 5, 'p'}}, true, false},
		"a place that came free":         {held, []step{{0, 1, 'p'}, {2, 3, 'p'}, {0, 4, 'e'}, {5, 6, 'p'}}, false, false},
		"refused with a free place":      {held, []step{{0, 1, 'p'}, {2, 3, 'p'}, {0, 4, 'e'}, {5, 6, 'r'}}, true, false},
		"never used up":                  {soakRule{counts: forever, most: 9, window: sec}, []step{{0, 1, 'r'}}, true, true},
	} {
		a, got := &account{rule: tc.rule}, verdict{}
		for _, s := range tc.steps {
			ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
			now := func() time.Duration { return ms(s.answered) }
			if s.what != 'e' {
				a.begin()
			}
			switch s.what {
			case 'p':
				got = a.pass(uint64(s.sent), ms(s.sent), now)
			case 'r':
				got = a.refuse(ms(s.sent), now)
			case 'f':
				a.fail(now)
			case 'e':
				a.end(uint64(s.sent), now(), false)
				a.end(uint64(s.sent), now(), true)
			}
		}
		if got.wrong != tc.wrong || got.lenient != tc.lenient {
			t.Errorf("%s: wrong %v, lenient %v: %s", name, got.wrong, got.lenient, got.what)
		}
	}
}

// TestRoomSince: a bucket of ten in a second, as full as one can be when a request passed,
// is known to have room for one more once so much has run out as that one needs, and what
// came since, and what may be on its way.
func TestRoomSince(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	a := &account{rule: soakRule{counts: bucket, most: 10, burst: 2, window: time.Second}}
	for _, sent := range []int{1000, 1200, 1210, 1220} {
		a.begin()
		a.pass(uint64(sent), ms(sent), func() time.Duration { return ms(sent + 1) }) //nolint:gosec // positive
	}
	for sent, want := range map[int]int{1300: 0, 1320: 0, 1330: 1220, 1500: 1220} {
		if got := a.roomSince(ms(sent)); got != ms(want) {
			t.Errorf("sent at %d ms: since %s, want %d ms", sent, got, want)
		}
	}
	a.begin()
	if got := a.roomSince(ms(1330)); got != 0 {
		t.Errorf("beside one under way: since %s", got)
	}
}

// TestJudge: what is wrong by the strict bound counts only if nothing disturbed, and
// that is known a little later.
func TestJudge(t *testing.T) {
	const sec = time.Second
	j := judge{weather: &weather{}}
	j.take(verdict{wrong: true, from: 10 * sec, to: 11 * sec}, true)
	j.take(verdict{wrong: true, from: 20 * sec, to: 21 * sec}, false)
	j.take(verdict{wrong: true, lenient: true, from: 30 * sec, to: 31 * sec}, false)
	j.weather.disturbed(9*sec, 10*sec)
	j.weather.settles(10*sec, 10*sec)
	j.decide(12 * sec)
	if j.refusedWrongly != 0 || j.overshot != 1 {
		t.Errorf("%d, %d: disturbed, not decided yet, wrong", j.refusedWrongly, j.overshot)
	}
	j.decide(time.Hour)
	if j.refusedWrongly != 0 || j.overshot != 2 || j.strictly != 3 {
		t.Errorf("%d, %d, %d: one was not disturbed", j.refusedWrongly, j.overshot, j.strictly)
	}
	j.weather.set(true, 40*sec)
	j.take(verdict{wrong: true, from: 40 * sec, to: 41 * sec}, true)
	j.weather.set(false, 42*sec)
	j.weather.settles(42*sec, 42*sec)
	j.take(verdict{wrong: true, from: 42 * sec, to: 43 * sec}, true)
	j.take(verdict{wrong: true, from: 43 * sec, to: 44 * sec}, true)
	j.decide(time.Hour)
	if j.refusedWrongly != 1 || j.answers != 6 {
		t.Errorf("%d of %d refused wrongly, want 1 of 6", j.refusedWrongly, j.answers)
	}
	slow := &account{slow: []span{{50 * sec, 51 * sec}}}
	j.take(verdict{wrong: true, from: 53 * sec, to: 53 * sec, of: slow}, true) // Redis may hear of it yet
	j.weather.settles(54*sec, 55*sec)
	j.take(verdict{wrong: true, from: 55 * sec, to: 56 * sec, of: slow}, true)
	j.take(verdict{wrong: true, from: 56 * sec, to: 57 * sec, of: slow}, true)
	j.decide(time.Hour)
	if j.refusedWrongly != 2 {
		t.Errorf("%d refused wrongly, want 2: what is owed disturbs until Redis was told", j.refusedWrongly)
	}
}

// TestLedger: what passed has to be counted, and what was counted twice hides nothing
// that gets lost later.
func TestLedger(t *testing.T) {
	var l ledger
	add := func(n int) {
		for range n {
			l.add(l.now())
		}
	}
	add(10)
	for _, step := range []struct{ more, used, lost int64 }{{0, 10, 0}, {5, 18, 0}, {2, 19, 1}, {0, 20, 0}} {
		add(int(step.more))
		if got := l.audit(step.used); got != step.lost {
			t.Errorf("%d counted: %d lost, want %d", step.used, got, step.lost)
		}
	}
	before := l.now()
	l.forgotten()
	l.add(before)
	add(3)
	if got := l.audit(3); got != 0 || l.all != 3 {
		t.Errorf("a new epoch: %d lost, %d twice", got, l.all)
	}
}

// TestTellTime: a script that asks for the time is told it, and nothing else changes.
func TestTellTime(t *testing.T) {
	in := "*6\r\n$7\r\nEVALSHA\r\n$1\r\nx\r\n$1\r\n1\r\n$1\r\nk\r\n$1\r\n0\r\n$1\r\n0\r\n*1\r\n$4\r\nPING\r\n"
	r := bufio.NewReader(bytes.NewBufferString(in))
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	for {
		args, err := readCommand(r)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		tellTime(args, time.UnixMicro(1234567))
		writeCommand(w, args)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	want := "*6\r\n$7\r\nEVALSHA\r\n$1\r\nx\r\n$1\r\n1\r\n$1\r\nk\r\n$7\r\n1234567\r\n$1\r\n0\r\n*1\r\n$4\r\nPING\r\n"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	for _, bad := range []string{"+OK\r\n", "*1\r\n+OK\r\n", "*-1\r\n", "*99999999\r\n", "*1\r\n$99999999\r\n", "\n"} {
		if _, err := readCommand(bufio.NewReader(bytes.NewBufferString(bad))); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
