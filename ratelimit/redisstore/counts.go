package redisstore

import (
	"cmp"
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// count is a use on its way that needs no script: what is used in a window, after it.
type count struct {
	used *redis.IntCmd
	kept *redis.BoolCmd
}

// countsOnly says whether all uses are of limits that count whatever becomes of the
// request: then there is nothing to be decided in Redis, and two plain commands, those of
// envoyproxy/ratelimit, cost it a third of what the script does.
func (j *job) countsOnly() bool {
	for i := range j.uses {
		if u := &j.uses[i]; u.Op != limit.Take || u.Want > 0 || !u.Limit.CountsRefused() || u.Share > 0 {
			return false
		}
	}
	return len(j.uses) > 0
}

// count adds the uses to their counters, which are forgotten a window later.
func (j *job) count(ctx context.Context, pipe redis.Pipeliner) {
	j.counts = j.counts[:0]
	for i := range j.uses {
		u := &j.uses[i]
		key := u.Limit.CounterKey(u.Key, j.now)
		j.counts = append(j.counts, count{
			used: pipe.IncrBy(ctx, key, int64(u.Bounded())), //nolint:gosec // at most 2^32
			kept: pipe.Expire(ctx, key, (u.Limit.Window() + time.Second - 1).Truncate(time.Second)),
		})
	}
}

// fillCounts turns the counters into outcomes; failed is the error of the whole batch.
func (j *job) fillCounts(failed error) error {
	for i := range j.counts {
		c := &j.counts[i]
		if err := cmp.Or(c.used.Err(), c.kept.Err()); err != nil {
			return err
		}
		if !c.kept.Val() && failed != nil {
			return failed // it was not sent: Redis did not let us in
		}
		u := &j.uses[i]
		j.outcomes[i] = u.Limit.Counted(j.now, uint64(max(c.used.Val(), 0)), u.Bounded()) //nolint:gosec // not negative
	}
	return nil
}
