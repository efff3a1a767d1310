package authz

import (
	"context"
	"os"
	"runtime/debug"
	heap "runtime/metrics"
	"time"
)

const (
	// garbage is how much of it may gather before it is collected, in bytes, also when
	// little else is in memory. With Go's own rule, as much as is live, a service with
	// few policies collects many times in a second.
	garbage = 64 << 20
	// paceEvery is how often the rule is made to fit what is live.
	paceEvery = 10 * time.Second
	// liveMetric is what the last collection found alive, scanMetric what the next one
	// will have to look through: the data of policies have no pointers.
	liveMetric = "/gc/heap/live:bytes"
	scanMetric = "/gc/scan/heap:bytes"
)

// paceGC lets garbage gather to 64 MiB, and to as much as is live where that is more,
// but not for the sake of what takes a collection no time, until ctx ends. Who sets GOGC
// or GOMEMLIMIT decides that himself.
func paceGC(ctx context.Context) error {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		<-ctx.Done()
		return nil
	}
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent(heapBytes())))
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			debug.SetGCPercent(gcPercent(heapBytes()))
		}
	}
}

// heapBytes are what is live and what of it can have pointers.
func heapBytes() (live, scan uint64) {
	s := []heap.Sample{{Name: liveMetric}, {Name: scanMetric}}
	heap.Read(s)
	if s[0].Value.Kind() != heap.KindUint64 || s[1].Value.Kind() != heap.KindUint64 {
		return 0, 0
	}
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}

// gcPercent is the GOGC that lets garbage gather to 64 MiB, and to what is live unless
// less than half of that has to be looked through: then to twice that. What is live is at
// least a few MiB, so that the first collections of a process do not mislead.
func gcPercent(live, scan uint64) int {
	const least = 8 << 20
	allowed := max(garbage, min(live, 2*scan))
	return max(1, int(allowed*100/max(live, least))) //nolint:gosec // at most 800
}
