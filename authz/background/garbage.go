package background

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/writ-mesh/writ/internal/service"
)

const (
	// room is how many bytes of garbage gather while work is done: what compiling some
	// ten thousand rules makes. Most of what is live meanwhile is garbage when the work
	// is done, and to look through it before takes processors from who serves.
	room = 400 << 20
	// least is what Go takes for live at least.
	least = 4 << 20
	// lookEvery is how often the rule is made to fit what is live: Go's is a part of that.
	lookEvery = 50 * time.Millisecond
	// most is beyond what anybody sets but to have no collections.
	most = 1 << 30

	liveMetric    = "/gc/heap/live:bytes"
	percentMetric = "/gc/gogc:percent"
)

// gather lets so many bytes of garbage gather until back, or as many as are live where that
// is more and Go does so too. Who sets GOGC or GOMEMLIMIT decides that himself.
func gather(room uint64) (back func()) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	g := gathering{room: room}
	g.look()
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_ = service.Every(ctx, lookEvery, func(time.Time) { g.look() })
	}()
	return func() {
		stop()
		<-stopped
		g.back()
	}
}

// gathering is a change of GOGC for a while.
type gathering struct {
	room uint64
	// is what it was set to, was what somebody else has set it to.
	is, was uint64
}

func (g *gathering) look() { g.fit(read(percentMetric), read(liveMetric)) }

// fit makes GOGC, which is now, such that there is room over what was live last. What now
// allows is no measure: it may have been set when far less was live.
func (g *gathering) fit(now, live uint64) {
	if now > most {
		return
	}
	if now != g.is {
		g.was = now
	}
	// What is large may have as much garbage as Go allows it.
	g.is = max(g.room*100/max(live, least), min(g.was, 100))
	if g.is == now {
		return
	}
	was := debug.SetGCPercent(int(g.is)) //nolint:gosec // at most a hundred times room by least
	switch {
	case was < 0: // switched off just now
		debug.SetGCPercent(was)
	case uint64(was) != now: // set by somebody else just now, who waits for it
		g.was = uint64(was)
	}
}

// back undoes it, unless somebody else has set it since. What was live during the work
// goes first: else it would be the measure of what comes.
func (g *gathering) back() {
	if g.is == g.was {
		return
	}
	runtime.GC()
	if is := debug.SetGCPercent(int(g.was)); is != int(g.is) { //nolint:gosec // what they were
		debug.SetGCPercent(is)
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
