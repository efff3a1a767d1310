package limit

import "time"

// fixed is the state of a Fixed limit: the count of the window it was last used
// in. The zero value is an unused one.
type fixed struct {
	start int64 // of the window, microseconds since the epoch
	count uint64
}

// Check implements State. Asking for nothing asks whether the limit is over already.
func (f *fixed) Check(l Limit, now time.Time, hits, pending uint64) Outcome {
	f.turn(l, now)
	count := f.count + pending
	out := Outcome{
		Over:      min(count+min(hits, maxHits), maxCount) > uint64(l.requests),
		Remaining: left(l.requests, count),
		Reset:     f.reset(l, now),
	}
	if out.Over {
		out.RetryAfter = out.Reset
	}
	return out
}

// Add implements State.
func (f *fixed) Add(l Limit, now time.Time, hits uint64) {
	f.turn(l, now)
	f.count = min(f.count+min(hits, maxHits), maxCount)
}

// After implements State.
func (f *fixed) After(l Limit, now time.Time) (remaining uint32, reset time.Duration) {
	return left(l.requests, f.count), f.reset(l, now)
}

// Idle implements State: the window is over.
func (f *fixed) Idle(l Limit, now time.Time) bool {
	return l.windowStart(now).UnixMicro() != f.start
}

// turn begins a new count in a new window.
func (f *fixed) turn(l Limit, now time.Time) {
	if start := l.windowStart(now).UnixMicro(); f.start != start {
		*f = fixed{start: start}
	}
}

func (*fixed) reset(l Limit, now time.Time) time.Duration {
	return micros(l.window - mod(now.UnixMicro(), l.window))
}
