package background

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// room is how many bytes of garbage gather while work is done: what compiling some
	// ten thousand rules makes. Most of what is live meanwhile is garbage when the work
	// is done, and to look through it before takes processors from who serves.
	room = 256 << 20
	// least is what Go takes for live at least.
	least = 4 << 20

	liveMetric    = "/gc/heap/live:bytes"
	percentMetric = "/gc/gogc:percent"
)

// gather lets so many bytes of garbage gather until back, unless more may already. Who
// sets GOGC or GOMEMLIMIT decides that himself.
func gather(room uint64) (back func()) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	was := read(percentMetric)
	next := room * 100 / max(read(liveMetric), least)
	if next <= was {
		return func() {}
	}
	debug.SetGCPercent(int(next)) //nolint:gosec // at most 100 times room by least
	return func() {
		if read(percentMetric) == next { // nobody else has changed it
			debug.SetGCPercent(int(was)) //nolint:gosec // what it was
		}
	}
}

// read is a metric that is a number, 0 for one that Go does not know.
func read(name string) uint64 {
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}
