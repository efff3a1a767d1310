package redisstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// plansTimeout is how long a table of plans waits for Redis: no request does.
	plansTimeout = 2 * time.Second
	// plansScan is how many callers are asked for at once, plansChanges how many changes.
	// Both answers stay within what a connection may say (bounded).
	plansScan    = 1000
	plansChanges = 512
	// beginning is before all changes.
	beginning = "0-0"
)

// Plans reads tables of plans, each a hash of callers, a text with what is not about
// callers, and a stream that names the callers that were changed. It is safe for
// concurrent use.
type Plans struct{ client redis.UniversalClient }

// OpenPlans makes a reader with connections of its own. It does not connect.
func OpenPlans(o Options) (*Plans, error) {
	o.Timeout, o.Workers = plansTimeout, 2
	redis.SetLogger(silent{})
	c, err := client(o)
	if err != nil {
		return nil, err
	}
	return &Plans{client: c}, nil
}

// Close ends the connections.
func (p *Plans) Close() error { return p.client.Close() }

// PlansKey is the key of a table's callers, from which those of its head and its changes
// come.
func PlansKey(table string) string { return "writ:plans:{" + table + "}" }

// PlansState is how a table stands.
type PlansState struct {
	// Head is the text with what is not about callers.
	Head string
	// Callers is how many there are.
	Callers int64
	// Changed are the callers that were changed, with repetitions; Last is up to where,
	// and More that there are others.
	Changed []string
	Last    string
	More    bool
	// Gap says that other callers may have been changed too, so that all have to be read.
	Gap bool
}

// State tells what became of a table since a place in its changes that End or State
// gave, in one round trip.
func (p *Plans) State(ctx context.Context, table, since string) (PlansState, error) {
	key := PlansKey(table)
	pipe := p.client.Pipeline()
	head, callers := pipe.Get(ctx, key+":head"), pipe.HLen(ctx, key)
	// The place itself is asked for too: if it is there, nothing behind it is lost.
	changes := pipe.XRangeN(ctx, key+":changes", since, "+", plansChanges)
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return PlansState{}, err
	}
	list := changes.Val()
	s := PlansState{Head: head.Val(), Callers: callers.Val(), Last: since, More: len(list) == plansChanges}
	switch {
	case since == beginning:
		s.Gap = len(list) > 0 // nothing tells whether these are the first ones
	case len(list) == 0 || list[0].ID != since:
		s.Gap = true
	default:
		list = list[1:]
	}
	for _, change := range list {
		s.Last = change.ID
		if caller, ok := change.Values["caller"].(string); ok {
			s.Changed = append(s.Changed, caller)
		} else {
			s.Gap = true
		}
	}
	return s, nil
}

// End is the place behind all changes of a table.
func (p *Plans) End(ctx context.Context, table string) (string, error) {
	last, err := p.client.XRevRangeN(ctx, PlansKey(table)+":changes", "+", "-", 1).Result()
	if err != nil || len(last) == 0 {
		return beginning, err
	}
	return last[0].ID, nil
}

// Scan gives some callers of a table, each followed by what it has, and where to go on;
// 0 is the beginning and the end. A caller may be given twice.
func (p *Plans) Scan(ctx context.Context, table string, from uint64) (pairs []string, next uint64, err error) {
	return p.client.HScan(ctx, PlansKey(table), from, "", plansScan).Result()
}

// Get gives what callers have, nil for those that are not in the table. It takes as
// many as State and no more.
func (p *Plans) Get(ctx context.Context, table string, callers []string) ([]any, error) {
	values, err := p.client.HMGet(ctx, PlansKey(table), callers...).Result()
	if err == nil && len(values) != len(callers) {
		return nil, fmt.Errorf("%d answers for %d callers", len(values), len(callers))
	}
	return values, err
}
