package limit

import (
	"slices"
	"time"
)

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

// check implements state. It also forgets what has left the window.
func (s *sliding) check(l Limit, at int64, hits, pending uint64) Outcome {
	s.expire(l, at)
	need := s.used + pending + max(hits, 1) // asking for nothing asks whether one would pass
	out := Outcome{Remaining: left(l.requests, s.used+pending), Reset: s.reset(l, at)}
	if need > uint64(l.requests) {
		out.Over = true
		out.RetryAfter = s.retry(l, at, need)
	}
	return out
}

func (s *sliding) add(l Limit, at int64, hits uint64) {
	if hits == 0 {
		return
	}
	s.expire(l, at)
	s.used += hits
	if n := len(s.entries); n > 0 && (n >= maxEntries || sameStep(l, s.entries[n-1].at, at)) {
		s.entries[n-1] = entry{at: at, hits: s.entries[n-1].hits + hits}
		return
	}
	s.entries = append(s.entries, entry{at: at, hits: hits})
}

func (s *sliding) after(l Limit, at int64) (remaining uint32, reset time.Duration) {
	s.expire(l, at)
	return left(l.requests, s.used), s.reset(l, at)
}

// refund takes hits out of the entry that those of the time when are in, at most
// what is in it. If the time is not known it takes them out of the newest entries:
// a use that stays may then leave the window early, by as long as it is newer than
// what was given back. Taken out of the oldest ones none would leave early, but
// whoever gives back a part of each use would fill the window with all of it.
func (s *sliding) refund(l Limit, at int64, hits uint64, when int64) (given uint64) {
	s.expire(l, at)
	if when != 0 {
		i := slices.IndexFunc(s.entries, func(e entry) bool { return e.at >= when })
		if i < 0 {
			return 0 // it has left the window
		}
		return s.takeOut(i, hits)
	}
	for i := len(s.entries) - 1; i >= 0 && given < hits; i-- {
		given += s.takeOut(i, hits-given)
	}
	return given
}

// takeOut takes at most so many hits out of an entry.
func (s *sliding) takeOut(i int, hits uint64) uint64 {
	hits = min(hits, s.entries[i].hits)
	s.entries[i].hits -= hits
	s.used -= hits
	if s.entries[i].hits == 0 {
		s.entries = slices.Delete(s.entries, i, i+1)
	}
	return hits
}

func (s *sliding) idle(l Limit, at int64) bool {
	n := len(s.entries)
	return n == 0 || s.entries[n-1].at+l.window <= at
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
