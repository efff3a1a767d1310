package limit

import "time"

// Counter is the state of one fixed limit: the count of the window it was last
// used in. The zero value is an unused one. It is not safe for concurrent use.
type Counter struct {
	start int64
	count uint64
}

// Count counts hits and says how the count stands to the limit. Refused uses
// are counted too.
func (c *Counter) Count(l Limit, now time.Time, hits uint64) Outcome {
	start := l.WindowStart(now).UnixMicro()
	if c.start != start {
		*c = Counter{start: start}
	}
	c.count = min(c.count+min(hits, maxHits), maxCount)
	return FixedOutcome(l, now, c.count)
}

// Idle says that the counter's window is over.
func (c *Counter) Idle(l Limit, now time.Time) bool {
	return l.WindowStart(now).UnixMicro() != c.start
}

// FixedOutcome says how count uses in the window of now stand to a limit.
func FixedOutcome(l Limit, now time.Time, count uint64) Outcome {
	at := now.UnixMicro()
	out := Outcome{
		Over:      count > uint64(l.requests),
		Remaining: left(l.requests, count),
		Reset:     micros(l.window - mod(at, l.window)),
	}
	if out.Over {
		out.RetryAfter = out.Reset
	}
	return out
}
