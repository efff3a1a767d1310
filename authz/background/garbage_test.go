package background

import (
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// While work is done there is room for its garbage, over what is live and not as a part
// of it; afterwards the rule is what it was, or what somebody has made it meanwhile.
func TestGarbageGathers(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	defer debug.SetGCPercent(debug.SetGCPercent(120))
	runtime.GC()
	const large = 64 << 20
	about := func(live uint64) error {
		got := read(percentMetric) * live / 100
		if got < room*8/10 || got > room {
			return fmt.Errorf("room for %d bytes over %d", got, live)
		}
		return nil
	}
	work := func() (end func()) {
		begun, over, ended := make(chan struct{}), make(chan struct{}), make(chan error)
		go func() {
			ended <- Run(t.Context(), func() error {
				close(begun)
				<-over
				return nil
			})
		}()
		<-begun
		return func() {
			close(over)
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	is := func(want uint64, what string) {
		t.Helper()
		if got := read(percentMetric); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}

	end := work()
	if err := about(max(read(liveMetric), least)); err != nil {
		t.Error(err)
	}
	kept := make([]byte, large)
	runtime.GC()
	if live := read(liveMetric); live < large {
		t.Errorf("%d bytes are live", live)
	}
	proctest.Eventually(t, 30*time.Second, func() error { return about(read(liveMetric)) })
	runtime.KeepAlive(kept)
	end()
	is(120, "afterwards")

	runtime.GC()
	end = work()
	debug.SetGCPercent(130)
	proctest.Eventually(t, 30*time.Second, func() error { return about(max(read(liveMetric), least)) })
	end()
	is(130, "set by somebody else meanwhile")

	// As a part of what was live when it was set it may be far too much now.
	debug.SetGCPercent(100_000)
	runtime.GC()
	end = work()
	if err := about(max(read(liveMetric), least)); err != nil {
		t.Errorf("instead of a thousand times what is live: %v", err)
	}
	end()
	is(100_000, "after much")
	debug.SetGCPercent(-1)
	end = work()
	is(math.MaxUint64, "no collections")
	end()
	debug.SetGCPercent(120)
	t.Setenv("GOMEMLIMIT", "1GiB")
	end = work()
	is(120, "an operator's limit")
	end()
}

// What somebody else sets at the same moment is not lost: he would wait for it for ever.
func TestGatheringMeets(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(130))
	g := gathering{room: room}
	g.fit(120, least) // as it was a moment ago
	if got := read(percentMetric); got != g.is || g.was != 130 {
		t.Errorf("%d is set, %d taken for it; it was 130, not %d", got, g.is, g.was)
	}
	g.back()
	if got := read(percentMetric); got != 130 {
		t.Errorf("afterwards %d, want 130", got)
	}
	for _, other := range []int{140, -1} {
		g = gathering{room: room}
		debug.SetGCPercent(130)
		g.look()
		debug.SetGCPercent(other)
		g.back()
		if got := debug.SetGCPercent(130); got != other {
			t.Errorf("set to %d meanwhile, afterwards %d", other, got)
		}
	}
	debug.SetGCPercent(-1)
	g = gathering{room: room}
	g.fit(120, least)
	if got := debug.SetGCPercent(130); got != -1 {
		t.Errorf("switched off a moment ago, and %d", got)
	}
}
