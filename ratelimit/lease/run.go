package lease

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

// lastReturns is how long the shares in hand may take to be given back at the end.
const lastReturns = 250 * time.Millisecond

// Run asks for shares in time, and gives back what is not used, until ctx ends;
// then it gives back all that is in hand.
func (s *Store) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.fetchShares(ctx) })
	g.Go(func() error { return s.returnShares(ctx) })
	g.Go(func() error { return s.sweepShares(ctx) })
	return g.Wait()
}

func (s *Store) fetchShares(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-s.fetch:
			cells := []*cell{c}
			for more := true; more && len(cells) < batch; {
				select {
				case c := <-s.fetch:
					cells = append(cells, c)
				default:
					more = false
				}
			}
			s.fetchOnce(ctx, cells)
		}
	}
}

// fetchOnce asks for a share of each counter, all at once. That one of them is over
// must not keep the others from theirs: the uses are only observed.
func (s *Store) fetchOnce(ctx context.Context, cells []*cell) {
	now := s.now()
	uses, asked := make([]limit.Use, 0, len(cells)), make([]*cell, 0, len(cells))
	for _, c := range cells {
		sh := s.shard(c.key)
		sh.mu.Lock()
		if want := c.demand(now); want > 0 {
			uses = append(uses, limit.Use{Key: c.key, Limit: c.terms.Asked, Hits: 1, Want: want, Observe: true})
			asked = append(asked, c)
		} else {
			c.fetching = false
		}
		sh.mu.Unlock()
	}
	if len(uses) == 0 {
		return
	}
	s.metrics.asked.Add(float64(len(uses)))
	outcomes := make([]limit.Outcome, len(uses))
	err := s.shared.Decide(ctx, now, uses, outcomes)
	for i, c := range asked {
		sh := s.shard(c.key)
		sh.mu.Lock()
		s.fetched(sh, c, &outcomes[i], now, err == nil)
		sh.mu.Unlock()
	}
}

// fetched takes in the answer to a request for a share.
func (s *Store) fetched(sh *shard, c *cell, out *limit.Outcome, now time.Time, ok bool) {
	c.fetching = false
	if !ok || out.Over {
		c.quiet = now.Add(c.terms.Valid / 4)
		return
	}
	c.remaining, c.free = out.Remaining, now.Add(out.Reset)
	if sh.cells[c.key] != c { // it was forgotten meanwhile
		s.back(c, grant{left: out.Taken, at: out.At})
		return
	}
	s.accept(c, out.Taken, out, now)
}

func (s *Store) returnShares(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			// The rest has to be brief: those who use the counters now are waiting.
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastReturns)
			defer cancel()
			s.sweep(s.now(), true)
			for len(s.returns) > 0 && last.Err() == nil {
				s.returnOnce(last, <-s.returns)
			}
			return ctx.Err()
		case u := <-s.returns:
			s.returnOnce(ctx, u)
		}
	}
}

// returnOnce gives back u and what waits behind it. What cannot be given back is
// free again when its window is over.
func (s *Store) returnOnce(ctx context.Context, u limit.Use) {
	uses := []limit.Use{u}
	for len(uses) < batch {
		select {
		case u := <-s.returns:
			uses = append(uses, u)
			continue
		default:
		}
		break
	}
	_ = s.shared.Decide(ctx, s.now(), uses, make([]limit.Outcome, len(uses)))
}

func (s *Store) sweepShares(ctx context.Context) error {
	return service.Every(ctx, sweepEvery, func(time.Time) { s.sweep(s.now(), false) })
}

// sweep gives back what is over, and all that is in hand of counters that are idle,
// and forgets those.
func (s *Store) sweep(now time.Time, all bool) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for _, c := range sh.cells {
			if all || now.Sub(c.last) > max(idle, c.terms.Valid/8) {
				s.forget(sh, c, now)
				continue
			}
			for g := c.expired(now, false); g.size > 0; g = c.expired(now, false) {
				s.back(c, g)
			}
		}
		sh.mu.Unlock()
	}
}
