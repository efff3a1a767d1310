package limit

import "time"

const (
	// Steps is how finely a window is cut. A limit of at most Steps requests
	// remembers each use by itself and is exact to the microsecond. A greater one
	// remembers one entry per step with the time of the newest use in it, so that
	// a use may count up to 1/Steps of a window longer than it had to, and never
	// shorter. An entry takes 16 bytes.
	steps = 32
	// maxEntries bounds a state even when Record exceeds the limit.
	maxEntries = 2 * steps
)

// Window is the state of one sliding limit. The zero value is an unused one. It
// is not safe for concurrent use.
type Window struct {
	entries []entry // oldest first
	used    uint64  // sum of the entries' hits
}

type entry struct {
	at   int64 // microseconds since the epoch, of the newest use in the entry
	hits uint64
}

// Check says what would become of hits, on top of pending hits that were checked
// before in the same decision, and forgets what has left the window. It takes nothing.
func (w *Window) Check(l Limit, now time.Time, hits, pending uint64) Outcome {
	at := now.UnixMicro()
	w.expire(l, at)
	hits = min(hits, maxHits)
	need := w.used + pending + max(hits, 1) // asking for nothing asks whether one would pass
	out := Outcome{Remaining: left(l.requests, w.used+pending), Reset: w.reset(l, at)}
	if need > uint64(l.requests) {
		out.Over = true
		out.RetryAfter = w.retry(l, at, need)
	}
	return out
}

// Add takes hits, whether they fit or not.
func (w *Window) Add(l Limit, now time.Time, hits uint64) {
	if hits == 0 {
		return
	}
	hits = min(hits, maxHits)
	at := now.UnixMicro()
	w.expire(l, at)
	w.used += hits
	if n := len(w.entries); n > 0 && (n >= maxEntries || sameStep(l, w.entries[n-1].at, at)) {
		w.entries[n-1] = entry{at: at, hits: w.entries[n-1].hits + hits}
		return
	}
	w.entries = append(w.entries, entry{at: at, hits: hits})
}

// After describes the limit once a decision is made.
func (w *Window) After(l Limit, now time.Time) (remaining uint32, reset time.Duration) {
	return left(l.requests, w.used), w.reset(l, now.UnixMicro())
}

// Idle says that nothing counts any more, so that the state may be forgotten.
func (w *Window) Idle(l Limit, now time.Time) bool {
	n := len(w.entries)
	return n == 0 || w.entries[n-1].at+l.window <= now.UnixMicro()
}

// expire drops the entries that left the window. If the clock was set back, what
// lies in the future is taken as of now: it must not count for longer than a window.
func (w *Window) expire(l Limit, at int64) {
	n := len(w.entries)
	if n > 0 && w.entries[n-1].at > at {
		for i := range w.entries {
			w.entries[i].at = min(w.entries[i].at, at)
		}
	}
	gone := 0
	for gone < n && w.entries[gone].at+l.window <= at {
		w.used -= w.entries[gone].hits
		gone++
	}
	if gone > 0 {
		// Moving a few entries costs less than letting the slice creep through memory.
		w.entries = w.entries[:copy(w.entries, w.entries[gone:])]
	}
}

// retry is when need hits (used ones included) will have come down to the limit.
func (w *Window) retry(l Limit, at int64, need uint64) time.Duration {
	for _, e := range w.entries {
		need -= e.hits
		if need <= uint64(l.requests) {
			return micros(e.at + l.window - at)
		}
	}
	return micros(l.window)
}

func (w *Window) reset(l Limit, at int64) time.Duration {
	n := len(w.entries)
	if n == 0 {
		return 0
	}
	return micros(w.entries[n-1].at + l.window - at)
}

// sameStep says whether uses at a and b share an entry.
func sameStep(l Limit, a, b int64) bool {
	if l.requests <= steps {
		return a == b
	}
	step := l.window / steps
	return (a-mod(a, step))/step == (b-mod(b, step))/step
}
