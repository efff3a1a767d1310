package regions

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

// forget forgets, for counters that are to be reset, what was borrowed and lent of them,
// and gives back what is in hand. What others have in hand they may use until its time is
// over.
func (s *Store) forget(ctx context.Context, now time.Time, uses []limit.Use) error {
	for i := range uses {
		u := &uses[i]
		if u.Op != limit.Reset || u.Mode == limit.Local {
			continue
		}
		valid, ok := validFor(u.Limit)
		if !ok {
			continue
		}
		s.drop(u.Key)
		rule, err := limit.New(limit.Sliding, u.Limit.Requests(), u.Limit.Window()+valid)
		if err != nil {
			continue // nothing was ever lent of it
		}
		var all []limit.Use
		for _, p := range s.peers {
			for _, key := range []string{borrowedKey(u.Key, p.name), lentKey(u.Key, p.name)} {
				all = append(all, limit.Use{Key: key, Limit: rule, Op: limit.Reset})
			}
		}
		if err := s.below.Decide(ctx, now, all, make([]limit.Outcome, len(all))); err != nil {
			return err
		}
	}
	return nil
}

// drop gives back what is in hand of a counter and forgets what is known of it. Who asks
// for it now is told when that is answered.
func (s *Store) drop(key string) {
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if c := sh.cells[key]; c != nil {
		s.back(c, c.ended(moment{}, true))
		delete(sh.cells, key)
	}
}

// Others are the names of the other regions.
func (s *Store) Others() []string {
	names := make([]string, len(s.peers))
	for i, p := range s.peers {
		names[i] = p.name
	}
	return names
}

// Region is this region's name, and the part it has of a limit.
func (s *Store) Region(l limit.Limit) (name string, part uint32) {
	return s.division.own, s.division.part(s.division.own, l.Requests())
}

// Change has another region change its part of a counter.
func (s *Store) Change(ctx context.Context, region string, r *ratelimitpb.ChangeRequest) (*ratelimitpb.ChangeResponse, error) {
	for _, p := range s.peers {
		if p.name != region {
			continue
		}
		p.mu.Lock()
		client, up := p.client, p.up
		p.mu.Unlock()
		if !up {
			return nil, status.Error(codes.FailedPrecondition, "the region is away")
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		r.Region = s.division.own
		return client.Change(call, r)
	}
	return nil, status.Error(codes.NotFound, "there is no such region")
}
