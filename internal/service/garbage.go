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
)

// PaceGarbage lets room bytes of garbage gather before it is collected, and as much as
// is live where that is more, but not for the sake of what takes a collection no time,
// until ctx ends. With Go's own rule, as much as is live, a service that holds little
// collects many times in a second, and who asks meanwhile waits for milliseconds. Who sets
// GOGC or GOMEMLIMIT decides that himself. It is for one task of a process.
func PaceGarbage(room uint64) func(context.Context) error {
	return func(ctx context.Context) error {
		if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
			<-ctx.Done()
			return ctx.Err()
		}
		now := gcPercent(room, heapBytes())
		defer debug.SetGCPercent(debug.SetGCPercent(now))
		return Every(ctx, paceEvery, func(time.Time) {
			if next := gcPercent(room, heapBytes()); isOther(next, now) {
				now = next
				debug.SetGCPercent(now)
			}
		})
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
