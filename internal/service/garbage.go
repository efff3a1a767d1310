package service

import (
	"context"
	"os"
	"runtime/debug"
	heap "runtime/metrics"
	"time"
)

const (
	// paceEvery is how often the rule is made to fit what is live, soon enough after
	// much was loaded.
	paceEvery = time.Second
	// liveMetric is what the last collection found alive, scanMetric what the next one
	// will have to look through: the data of policies have no pointers.
	liveMetric = "/gc/heap/live:bytes"
	scanMetric = "/gc/scan/heap:bytes"
	// percentMetric is GOGC.
	percentMetric = "/gc/gogc:percent"
)

// PaceGarbage lets room bytes of garbage gather before it is collected, and as much as
// is live where that is more, but not for the sake of what takes a collection no time,
// until ctx ends. With Go's own rule, as much as is live, a service that holds little
// collects many times in a second, and who asks meanwhile waits for milliseconds. Who sets
// GOGC or GOMEMLIMIT decides that himself, and who changes it for a while in the process
// is waited for. It is for one task of a process.
func PaceGarbage(room uint64) func(context.Context) error {
	return func(ctx context.Context) error {
		if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
			<-ctx.Done()
			return ctx.Err()
		}
		p := pacer{room: room, set: gcPercent(room, heapBytes())}
		defer debug.SetGCPercent(debug.SetGCPercent(p.set))
		return Every(ctx, paceEvery, p.tick)
	}
}

// pacer sets GOGC again and again.
type pacer struct {
	room uint64
	// set is what it was set to.
	set int
}

// tick makes it fit what is live, unless somebody else has set it and not yet back.
func (p *pacer) tick(time.Time) {
	s := []heap.Sample{{Name: percentMetric}}
	if heap.Read(s); s[0].Value.Kind() != heap.KindUint64 || s[0].Value.Uint64() != uint64(p.set) { //nolint:gosec // positive
		return
	}
	if next := gcPercent(p.room, heapBytes()); isOther(next, p.set) {
		p.set = next
		debug.SetGCPercent(next)
	}
}

// isOther says that two values of GOGC differ by an eighth: to set it stops the process
// for a moment, after the collection that is under way.
func isOther(a, b int) bool { return 8*min(a, b) < 7*max(a, b) }

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
