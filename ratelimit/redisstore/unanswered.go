package redisstore

import (
	"sync"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// unanswered is the ErrTimeout of a decision that Redis may answer yet: a worker waits for
// it longer than whoever asked.
type unanswered struct {
	job   *job
	mu    sync.Mutex
	known bool
	took  []limit.Outcome // nil if it failed in the end
}

// Error implements error.
func (u *unanswered) Error() string { return ErrTimeout.Error() }

// Unwrap makes it an ErrTimeout.
func (u *unanswered) Unwrap() error { return ErrTimeout }

// Late is what became of the decision after all; ok is false as long as nobody knows. Do
// not change it.
func (u *unanswered) Late() (outcomes []limit.Outcome, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.known {
		select {
		case err := <-u.job.done:
			if u.known = true; err == nil {
				u.took = u.job.outcomes
			}
		default:
		}
	}
	return u.took, u.took != nil
}
