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
	// liveMetric is what the last collection found alive.
	liveMetric = "/gc/heap/live:bytes"
)

// paceGC lets garbage gather to 64 MiB, and to as much as is live where that is more,
// until ctx ends. Who sets GOGC or GOMEMLIMIT decides that himself.
func paceGC(ctx context.Context) error {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		<-ctx.Done()
		return nil
	}
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent(liveBytes())))
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			debug.SetGCPercent(gcPercent(liveBytes()))
		}
	}
}

func liveBytes() uint64 {
	s := []heap.Sample{{Name: liveMetric}}
	heap.Read(s)
	if s[0].Value.Kind() != heap.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}

// gcPercent is the GOGC that lets garbage gather to 64 MiB, at least 100. What is live
// is at least a few MiB, so that the first collections of a process do not mislead.
func gcPercent(live uint64) int {
	const least = 8 << 20
	return max(100, int(garbage*100/max(live, least))) //nolint:gosec // at most 800
}
