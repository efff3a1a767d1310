package limit

import "time"

// inflight is the state of a Concurrency limit beside its holds, which are all
// that counts.
type inflight struct{}

// check says that room is after a window; the holds may know better.
func (inflight) check(l Limit, _ int64, hits, pending uint64) Outcome {
	out := Outcome{Remaining: left(l.requests, pending)}
	if pending+max(hits, 1) > uint64(l.requests) {
		out.Over, out.RetryAfter = true, micros(l.window)
	}
	return out
}

func (inflight) add(Limit, int64, uint64)                       {}
func (inflight) refund(Limit, int64, uint64, int64) uint64      { return 0 }
func (inflight) after(l Limit, _ int64) (uint32, time.Duration) { return l.requests, 0 }
func (inflight) idle(Limit, int64) bool                         { return true }
