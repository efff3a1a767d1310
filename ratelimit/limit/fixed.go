package limit

import "time"

// fixed is the state of a Fixed limit: the count of the window it was last used
// in. The zero value is an unused one.
type fixed struct {
	start int64 // of the window, microseconds since the epoch
	count uint64
}

// check implements state. Asking for nothing asks whether the limit is over already.
func (f *fixed) check(l Limit, now int64, hits, pending uint64) Outcome {
	f.turn(l, now)
	count := f.count + pending
	out := Outcome{
		Over:      min(count+hits, maxCount) > uint64(l.requests),
		Remaining: left(l.requests, count),
		Reset:     f.reset(l, now),
	}
	if out.Over {
		out.RetryAfter = out.Reset
	}
	return out
}

func (f *fixed) add(l Limit, now int64, hits uint64) {
	f.turn(l, now)
	f.count = min(f.count+hits, maxCount)
}

// Counted is the outcome of a use of a limit that counts refused ones too, when in its
// window so many hits are used with those of the use.
func (l Limit) Counted(now time.Time, used, hits uint64) Outcome {
	out := Outcome{Over: used > uint64(l.requests), Remaining: left(l.requests, used), Reset: l.UntilNext(now), Taken: hits, At: now.Truncate(time.Microsecond)}
	if out.Over {
		out.RetryAfter = out.Reset
	}
	return out
}

// refund gives nothing back that was taken in another window.
func (f *fixed) refund(l Limit, now int64, hits uint64, at int64) uint64 {
	f.turn(l, now)
	if at != 0 && l.windowStart(at) != f.start {
		return 0
	}
	hits = min(hits, f.count)
	f.count -= hits
	return hits
}

func (f *fixed) after(l Limit, now int64) (remaining uint32, reset time.Duration) {
	return left(l.requests, f.count), f.reset(l, now)
}

// idle: the window is over.
func (f *fixed) idle(l Limit, now int64) bool { return l.windowStart(now) != f.start }

// turn begins a new count in a new window.
func (f *fixed) turn(l Limit, now int64) {
	if start := l.windowStart(now); f.start != start {
		*f = fixed{start: start}
	}
}

func (*fixed) reset(l Limit, now int64) time.Duration {
	return micros(l.window - mod(now, l.window))
}
