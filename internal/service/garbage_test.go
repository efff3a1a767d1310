package service

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/writ-mesh/writ/internal/proctest"
)

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		live, scan uint64
		want       int
	}{
		{0, 0, 1600},
		{4 << 20, 4 << 20, 1600},
		{8 << 20, 6 << 20, 800},
		{16 << 20, 8 << 20, 400},
		{64 << 20, 40 << 20, 100},
		{8 << 30, 5 << 30, 100},
		{640 << 20, 10 << 20, 10},
		{8 << 30, 1 << 30, 25},
		{8 << 30, 1 << 20, 1},
	} {
		if got := gcPercent(64<<20, heapSize{c.live, c.scan}); got != c.want {
			t.Errorf("%d live bytes, %d with pointers: %d, want %d", c.live, c.scan, got, c.want)
		}
	}
}

// What differs by little is not set again.
func TestOtherGCPercent(t *testing.T) {
	for _, c := range []struct {
		a, b int
		want bool
	}{{1, 1, false}, {1, 2, true}, {100, 112, false}, {112, 100, false}, {100, 115, true}, {115, 100, true}, {1600, 0, true}} {
		if got := isOther(c.a, c.b); got != c.want {
			t.Errorf("%d and %d: %v", c.a, c.b, got)
		}
	}
}

// percentIs is what GOGC is, -1 if it is switched off.
func percentIs() int {
	if p := percent(); p <= switchedOff {
		return int(p) //nolint:gosec // at most that
	}
	return -1
}

// What somebody else has set stays until he sets it back, and is lost neither if he does
// it at the same moment nor when nobody paces any more.
func TestPaceWaits(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	var g Garbage
	g.change(func() { g.room = 64 << 30 })
	paced := percentIs()
	if paced < 1000 || paced != g.set {
		t.Fatalf("room for 64 GiB makes it %d, and %d was set", paced, g.set)
	}
	for _, other := range []int{77, -1} {
		debug.SetGCPercent(other)
		g.change(func() {})
		if got := percentIs(); got != other || g.set != paced {
			t.Errorf("somebody's %d is %d, %d was set", other, got, g.set)
		}
		if exchange(paced, 60) || percentIs() != other {
			t.Errorf("set at the same moment %d is %d", other, percentIs())
		}
	}
	debug.SetGCPercent(paced)
	g.change(func() { g.room = 640 << 30 })
	if got := percentIs(); got != g.set || got < 9*paced {
		t.Errorf("set back, and with more room it is %d", got)
	}
	debug.SetGCPercent(66)
	g.change(func() { g.room = 0 })
	if got := percentIs(); got != 66 || g.set != 0 {
		t.Errorf("somebody's 66 is %d afterwards, %d was set", got, g.set)
	}
	g.change(func() { g.room = 64 << 30 })
	g.change(func() { g.room = 0 })
	if got := percentIs(); got != 66 {
		t.Errorf("66 is %d afterwards", got)
	}
}

// What Pace sets it takes back, and an operator's own setting it leaves alone.
func TestPace(t *testing.T) {
	before := debug.SetGCPercent(123)
	defer debug.SetGCPercent(before)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, env := range []string{"", "100"} {
		t.Setenv("GOGC", env)
		g := new(Garbage)
		g.Raise(1 << 30)() // forgotten with g
		if err := g.Pace(64 << 20)(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if env == "" {
			proctest.Eventually(t, 30*time.Second, func() error { return is(123) })
		}
		if got := percentIs(); got != 123 {
			t.Errorf("GOGC %q: %d is left, want 123", env, got)
		}
	}
}

// A process whose memory is limited collects its garbage before that is used up.
func TestKeepWithin(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	for _, c := range []struct {
		limit uint64
		err   error
		want  int64
	}{
		{limit: 1000 << 20, want: 900 << 20},
		{err: memlimit.ErrNoLimit, want: before},
		{limit: math.MaxUint64, want: before},
	} {
		undo := keepWithin(func() (uint64, error) { return c.limit, c.err })
		if got := debug.SetMemoryLimit(-1); got != c.want {
			t.Errorf("limit %d, %v: %d, want %d", c.limit, c.err, got, c.want)
		}
		undo()
		if got := debug.SetMemoryLimit(-1); got != before {
			t.Errorf("afterwards it is %d, before %d", got, before)
		}
	}
}

// Go runs two threads where it would run one, and as many as before elsewhere, or as an
// operator says.
func TestNotAlone(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	for _, c := range []struct {
		env      string
		is, want int
	}{{"", 1, 2}, {"", 3, 3}, {"1", 1, 1}} {
		t.Setenv("GOMAXPROCS", c.env)
		runtime.GOMAXPROCS(c.is)
		undo := notAlone()
		if got := runtime.GOMAXPROCS(0); got != c.want {
			t.Errorf("GOMAXPROCS %q: of %d threads %d run, want %d", c.env, c.is, got, c.want)
		}
		undo()
		if got := runtime.GOMAXPROCS(0); got != c.is {
			t.Errorf("GOMAXPROCS %q: %d threads are left, want %d", c.env, got, c.is)
		}
	}
}

func is(want int) error {
	if got := percentIs(); got != want {
		return fmt.Errorf("GOGC is %d, want %d", got, want)
	}
	return nil
}

// While room is raised it is so over what is live at each moment. What comes within a
// moment afterwards has it too, and all of it has one collection.
func TestRaise(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	defer debug.SetGCPercent(debug.SetGCPercent(120))
	const least, large, more = 4 << 20, 64 << 20, 400 << 20
	var g Garbage
	about := func(live uint64) error {
		got := uint64(percentIs()) * live / 100 //nolint:gosec // it is set
		if got < more*8/10 || got > more*12/10 {
			return fmt.Errorf("room for %d bytes over %d", got, live)
		}
		return nil
	}
	runtime.GC()
	lower := g.Raise(more)
	if err := about(max(heapBytes().live, least)); err != nil {
		t.Error(err)
	}
	kept := make([]byte, large)
	runtime.GC()
	if live := heapBytes().live; live < large {
		t.Errorf("%d bytes are live", live)
	}
	proctest.Eventually(t, 30*time.Second, func() error { return about(heapBytes().live) })
	runtime.KeepAlive(kept)
	collections := func() uint32 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.NumForcedGC
	}
	before := collections()
	lower()
	for range 3 {
		again := g.Raise(more)
		if err := about(heapBytes().live); err != nil {
			t.Error(err)
		}
		again()
	}
	proctest.Eventually(t, 30*time.Second, func() error { return is(120) })
	if n := collections() - before; n != 1 {
		t.Errorf("%d collections", n)
	}

	// What is set by somebody else meanwhile stays, and he collects.
	lower = g.Raise(more)
	debug.SetGCPercent(130)
	before = collections()
	lower()
	proctest.Eventually(t, 30*time.Second, func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.more != 0 {
			return errors.New("still raised")
		}
		return nil
	})
	if err := is(130); err != nil || collections() != before {
		t.Errorf("error %v, %d collections", err, collections()-before)
	}
}
