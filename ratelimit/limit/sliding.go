package limit

import "time"

const (
	// Steps is how finely a window is cut. A limit of at most Steps requests
	// remembers each use by itself and is exact to the microsecond. A greater one
	// remembers one entry per step with the time of the newest use in it, so that
	// a use may count up to 1/Steps of a window longer than it had to, and never
	// shorter. An entry takes 16 bytes.
	steps = 32
	// maxEntries bounds a state even when more is added than the limit admits.
	maxEntries = 2 * steps
)

// sliding is the state of a Sliding limit. The zero value is an unused one.
type sliding struct {
	entries []entry // oldest first
	used    uint64  // sum of the entries' hits
	// first is room for an entry: many a counter never has a second one.
	first [1]entry
}

func newSliding() *sliding {
	s := new(sliding)
	s.entries = s.first[:0]
	return s
}

type entry struct {
	at   int64 // microseconds since the epoch, of the newest use in the entry
	hits uint64
}

// Check implements State. It also forgets what has left the window.
func (s *sliding) Check(l Limit, now time.Time, hits, pending uint64) Outcome {
	at := now.UnixMicro()
	s.expire(l, at)
	hits = min(hits, maxHits)
	need := s.used + pending + max(hits, 1) // asking for nothing asks whether one would pass
	out := Outcome{Remaining: left(l.requests, s.used+pending), Reset: s.reset(l, at)}
	if need > uint64(l.requests) {
		out.Over = true
		out.RetryAfter = s.retry(l, at, need)
	}
	return out
}

// Add implements State.
func (s *sliding) Add(l Limit, now time.Time, hits uint64) {
	if hits == 0 {
		return
	}
	hits = min(hits, maxHits)
	at := now.UnixMicro()
	s.expire(l, at)
	s.used += hits
	if n := len(s.entries); n > 0 && (n >= maxEntries || sameStep(l, s.entries[n-1].at, at)) {
		s.entries[n-1] = entry{at: at, hits: s.entries[n-1].hits + hits}
		return
	}
	s.entries = append(s.entries, entry{at: at, hits: hits})
}

// After implements State.
func (s *sliding) After(l Limit, now time.Time) (remaining uint32, reset time.Duration) {
	return left(l.requests, s.used), s.reset(l, now.UnixMicro())
}

// Idle implements State.
func (s *sliding) Idle(l Limit, now time.Time) bool {
	n := len(s.entries)
	return n == 0 || s.entries[n-1].at+l.window <= now.UnixMicro()
}

// expire drops the entries that left the window. If the clock was set back, what
// lies in the future is taken as of now: it must not count for longer than a window.
func (s *sliding) expire(l Limit, at int64) {
	n := len(s.entries)
	if n > 0 && s.entries[n-1].at > at {
		for i := range s.entries {
			s.entries[i].at = min(s.entries[i].at, at)
		}
	}
	gone := 0
	for gone < n && s.entries[gone].at+l.window <= at {
		s.used -= s.entries[gone].hits
		gone++
	}
	if gone > 0 {
		// Moving a few entries costs less than letting the slice creep through memory.
		s.entries = s.entries[:copy(s.entries, s.entries[gone:])]
	}
}

// retry is when need hits (used ones included) will have come down to the limit.
func (s *sliding) retry(l Limit, at int64, need uint64) time.Duration {
	for _, e := range s.entries {
		need -= e.hits
		if need <= uint64(l.requests) {
			return micros(e.at + l.window - at)
		}
	}
	return micros(l.window)
}

func (s *sliding) reset(l Limit, at int64) time.Duration {
	n := len(s.entries)
	if n == 0 {
		return 0
	}
	return micros(s.entries[n-1].at + l.window - at)
}

// sameStep says whether uses at a and b share an entry.
func sameStep(l Limit, a, b int64) bool {
	if l.requests <= steps {
		return a == b
	}
	step := l.window / steps
	return (a-mod(a, step))/step == (b-mod(b, step))/step
}
