package service

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	heap "runtime/metrics"
	"sync"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// paceEvery is how often the rule is made to fit what is live, soon enough after
	// much was loaded; raisedEvery is the same while room is raised for work that loads.
	paceEvery   = time.Second
	raisedEvery = 50 * time.Millisecond
	// linger is how long room stays raised after the work: what comes next, such as
	// putting in force what was made, leaves the most garbage of all.
	linger = 500 * time.Millisecond
	// liveMetric is what the last collection found alive, scanMetric what the next one
	// will have to look through: the data of policies have no pointers.
	liveMetric = "/gc/heap/live:bytes"
	scanMetric = "/gc/scan/heap:bytes"
	// objectsMetric is what there is, live or not.
	objectsMetric = "/memory/classes/heap/objects:bytes"
	// percentMetric is GOGC, and switchedOff what is beyond all that anybody sets but to
	// have no collections.
	percentMetric = "/gc/gogc:percent"
	switchedOff   = 1 << 30
)

// Garbage says how much garbage gathers in this process before it is collected. A process
// has one of them, for Go has one such rule: who sets GOGC or GOMEMLIMIT decides that
// himself, and who sets it otherwise within the process is waited for until he has set it
// back. The zero Garbage leaves everything to Go.
type Garbage struct {
	mu sync.Mutex
	// room is what may gather ever, more what may while somebody has raised it; 0 for
	// as much as Go lets.
	room, more uint64
	// raised is how many have raised it, turn counts how often somebody has.
	raised, turn int
	// set is what GOGC was set to, was what it had been; set is 0 if nothing was.
	set, was int
}

// Pace lets room bytes of garbage gather before it is collected, and as much as is live
// where that is more, but not for the sake of what takes a collection no time, until ctx
// ends. With Go's own rule, as much as is live, a service that holds little collects many
// times in a second, and who asks meanwhile waits for milliseconds.
func (g *Garbage) Pace(room uint64) func(context.Context) error {
	return func(ctx context.Context) error {
		if operated() {
			<-ctx.Done()
			return ctx.Err()
		}
		defer keepWithin(memlimit.FromCgroup)()
		defer notAlone()()
		g.change(func() { g.room = room })
		defer g.change(func() { g.room = 0 })
		return Every(ctx, paceEvery, func(time.Time) { g.change(func() {}) })
	}
}

// Raise lets more bytes of garbage gather, over what is live at each moment, until lower
// and a moment longer: work that leaves much behind, such as compiling, is done once, and
// to look through what is needed until its end takes processors from who serves. Then it
// is collected, once for all that came within the moment, while there is still room for
// what others make meanwhile, who would have to help else.
func (g *Garbage) Raise(more uint64) (lower func()) {
	if operated() {
		return func() {}
	}
	first := false
	g.change(func() {
		g.raised++
		g.turn++
		first = g.more == 0
		g.more = max(g.more, more)
	})
	if first {
		go g.follow()
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.raised--
	}
}

// follow makes the rule fit as long as room is raised, and collects afterwards.
func (g *Garbage) follow() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var since time.Time // nobody has raised it, the last of them at turn
	turn := 0
	_ = Every(ctx, raisedEvery, func(now time.Time) {
		g.change(func() {})
		g.mu.Lock()
		idle, at := g.raised == 0, g.turn
		g.mu.Unlock()
		switch {
		case !idle:
			since = time.Time{}
			return
		case since.IsZero() || at != turn:
			since, turn = now, at
			return
		case now.Sub(since) < linger:
			return
		}
		if g.isSet() && g.isFull() {
			runtime.GC()
		}
		g.change(func() {
			if g.raised == 0 && g.turn == turn {
				g.more = 0
				stop()
			}
		})
	})
}

// isSet says that the rule is one of ours: else it is not for us to collect.
func (g *Garbage) isSet() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.set != 0 && percent() == uint64(g.set) //nolint:gosec // positive
}

// isFull says that hardly any of the room is left that there is without raising it: else
// little was left behind, and may wait for its turn.
func (g *Garbage) isFull() bool {
	s := []heap.Sample{{Name: objectsMetric}}
	if heap.Read(s); s[0].Value.Kind() != heap.KindUint64 {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return s[0].Value.Uint64() > heapBytes().live+g.room/8*7
}

// change makes the rule fit after how, unless somebody else has set it and not yet back.
func (g *Garbage) change(how func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	how()
	now, room := percent(), max(g.room, g.more)
	is := int(min(now, switchedOff)) //nolint:gosec // at most that
	switch next := gcPercent(room, heapBytes()); {
	case g.set != 0 && is != g.set || is == switchedOff:
		if room == 0 {
			g.set = 0
		}
	case room > 0 && isOther(next, is):
		if exchange(is, next) {
			if g.set == 0 {
				g.was = is
			}
			g.set = next
		}
	case room == 0 && g.set != 0:
		exchange(is, g.was)
		g.set = 0
	}
}

// exchange sets GOGC unless somebody else has set it just now, who waits for it.
func exchange(is, next int) bool {
	before := debug.SetGCPercent(next)
	if before != is {
		debug.SetGCPercent(before)
	}
	return before == is
}

// keepWithin has garbage collected before the process has more memory than it may, of which
// a tenth is for what is not Go's. undo takes that back.
func keepWithin(limit func() (uint64, error)) (undo func()) {
	bytes, err := limit()
	if err != nil || bytes > math.MaxInt64 { // there is none, or no way to know
		return func() {}
	}
	before := debug.SetMemoryLimit(int64(bytes / 10 * 9))
	return func() { debug.SetMemoryLimit(before) }
}

// notAlone has Go run two threads where it would run one, until undo. What is left of garbage
// after a collection is swept up by a goroutine that steps back behind others that can run;
// but on a single thread nobody looks meanwhile whether there is anything new for those,
// for 10 ms and longer, the more has gathered.
func notAlone() (undo func()) {
	const alone, together = 1, 2
	if os.Getenv("GOMAXPROCS") != "" || runtime.GOMAXPROCS(0) != alone {
		return func() {}
	}
	runtime.GOMAXPROCS(together)
	return func() { runtime.GOMAXPROCS(alone) }
}

// operated says that an operator has decided how much garbage gathers.
func operated() bool { return os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" }

// isOther says that two values of GOGC differ by an eighth: to set it stops the process
// for a moment, after the collection that is under way.
func isOther(a, b int) bool { return 8*min(a, b) < 7*max(a, b) }

// percent is GOGC, beyond switchedOff if Go does not say.
func percent() uint64 {
	s := []heap.Sample{{Name: percentMetric}}
	if heap.Read(s); s[0].Value.Kind() != heap.KindUint64 {
		return switchedOff + 1
	}
	return s[0].Value.Uint64()
}

// heapSize is what is live and what of it can have pointers.
type heapSize struct{ live, scan uint64 }

func heapBytes() heapSize {
	s := []heap.Sample{{Name: liveMetric}, {Name: scanMetric}}
	heap.Read(s)
	if s[0].Value.Kind() != heap.KindUint64 || s[1].Value.Kind() != heap.KindUint64 {
		return heapSize{}
	}
	return heapSize{live: s[0].Value.Uint64(), scan: s[1].Value.Uint64()}
}

// gcPercent is the GOGC that lets room bytes of garbage gather, and what is live unless
// less than half of that has to be looked through: then twice that. Go takes what is live
// for at least 4 MiB.
func gcPercent(room uint64, h heapSize) int {
	const least = 4 << 20
	allowed := max(room, min(h.live, 2*h.scan))
	return max(1, int(allowed*100/max(h.live, least))) //nolint:gosec // room is far below
}
