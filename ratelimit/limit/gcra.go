package limit

import (
	"math"
	"time"
)

// gcra is the state of a GCRA limit: a bucket that each hit fills by one interval
// and that runs empty by itself (ITU-T I.371, the continuous-state leaky bucket).
// Level and interval are microseconds in floating point, computed in the same
// order as by the script of package redisstore, so that both agree bit for bit.
// The zero value is an unused one.
type gcra struct {
	level float64 // microseconds until the bucket is empty, as of at
	at    int64   // microseconds since the epoch
}

// interval is how long one hit takes to run out, in microseconds.
func (l Limit) interval() float64 { return float64(l.window) / float64(l.requests) }

// slack absorbs the rounding of levels: far less than one hit, and less than one
// microsecond, by a number that no level comes to.
func slack(interval float64) float64 { return min(interval*1e-6, 0.2371) }

func (g *gcra) check(l Limit, now int64, hits, pending uint64) Outcome {
	if l.requests == 0 || l.burst == 0 {
		return Outcome{Over: true, RetryAfter: micros(l.window)}
	}
	g.run(now)
	t := l.interval()
	need := pending + max(hits, 1)
	out := Outcome{}
	out.Remaining, out.Reset = g.after(l, now)
	out.Remaining = left(out.Remaining, pending)
	excess := g.level + float64(float64(need)*t) - float64(float64(l.burst)*t)
	if excess <= slack(t) {
		return out
	}
	out.Over, out.RetryAfter = true, micros(l.window)
	if need <= uint64(l.burst) {
		out.RetryAfter = micros(int64(math.Ceil(excess - slack(t))))
	}
	return out
}

func (g *gcra) add(l Limit, now int64, hits uint64) {
	if l.requests == 0 {
		return
	}
	g.run(now)
	// More than a bucket of what did not fit is not remembered: it would be
	// refused for longer than it takes to run empty twice. What a greater bucket
	// remembers, of the same counter, stays.
	t := l.interval()
	g.level = max(g.level, min(g.level+float64(float64(hits)*t), 2*float64(float64(max(l.burst, l.requests))*t)))
}

func (g *gcra) after(l Limit, now int64) (remaining uint32, reset time.Duration) {
	if l.requests == 0 {
		return 0, 0
	}
	g.run(now)
	t := l.interval()
	free := math.Floor((float64(float64(l.burst)*t) - g.level + slack(t)) / t)
	return uint32(min(max(free, 0), float64(l.burst))), micros(int64(math.Ceil(g.level)))
}

// refund gives back what has not run out yet, whole hits only. When they were
// taken does not matter: a level has no memory.
func (g *gcra) refund(l Limit, now int64, hits uint64, _ int64) uint64 {
	if l.requests == 0 {
		return 0
	}
	g.run(now)
	t := l.interval()
	hits = min(hits, uint64(max(math.Floor((g.level+slack(t))/t), 0)))
	g.level = max(g.level-float64(float64(hits)*t), 0)
	return hits
}

func (g *gcra) idle(_ Limit, now int64) bool { return g.level <= float64(now-g.at) }

// run lets the bucket run until now. After a clock was set back it goes on with
// the level that it had, which is a window's at most.
func (g *gcra) run(now int64) {
	if now > g.at {
		g.level = max(g.level-float64(now-g.at), 0)
	}
	g.at = now
}
