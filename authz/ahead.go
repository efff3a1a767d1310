package authz

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/writ-mesh/writ/authz/background"
	"github.com/writ-mesh/writ/authz/cache"
	"github.com/writ-mesh/writ/authz/rego"
)

// Bounds of what a new version of a bundle decides before it counts: that takes 50 us
// each, and the old version decides meanwhile.
const (
	mostAhead = 1 << 14
	longAhead = time.Second
)

// decideAhead has the next program of a policy decide what the one in force has decided of
// late, so that the moment in which it comes into force is not one in which everything is
// evaluated at once. It does so beside requests, and what it does not come to is evaluated
// when it is asked for. Once the next is in force, replaced lets go of what the one before
// has decided: who still asks that one has it evaluated.
func (e *evaluator) decideAhead(ctx context.Context, inForce, next *rego.Program) (replaced func()) {
	if e.cache == nil || !next.Follows(inForce) {
		return func() {}
	}
	list := e.cache.Select(func(d *decided) bool { return d.of != nil && inForce.Remembers(d.of) })
	slices.SortStableFunc(list, func(a, b cache.Item[decided]) int {
		switch {
		case a.Again == b.Again:
			return 0
		case a.Again:
			return -1
		}
		return 1
	})
	replaced = func() {
		for _, one := range list {
			e.cache.Remove(one.Key)
		}
	}
	if len(list) == 0 {
		return replaced
	}
	made := make([]cache.Item[decided], 0, min(len(list), mostAhead))
	_ = background.Run(ctx, func() error { // who has less is not worse off than without
		until := time.Now().Add(longAhead)
		for _, one := range list[:min(len(list), mostAhead)] {
			now := time.Now()
			if now.After(until) || ctx.Err() != nil {
				break
			}
			if !one.Expires.IsZero() && !now.Before(one.Expires) {
				continue
			}
			var d decided
			if one.Key, d.of, d.decision, d.err = next.EvalRemembered(ctx, one.Value.of, e.timeout); d.sure() {
				one.Value = d
				made = append(made, one)
			}
		}
		return ctx.Err()
	})
	// By who is not held up while he holds up others.
	for _, one := range made {
		e.cache.Put(one.Key, one.Value.entry(one.Expires))
	}
	e.metrics.ahead.Add(float64(len(made)))
	return replaced
}

// mayRemember says that what a program reads of a request has no secrets in it, as far as
// those are known: the decision log would write all of it down.
func (e *evaluator) mayRemember(p *rego.Program, in *rego.Input) bool {
	if !p.Narrow() {
		return false
	}
	for _, name := range p.Claims() {
		if e.secrets.Claim(name, "") != "" {
			return false
		}
	}
	http := in.HTTP()
	if path := http.GetPath(); path != "" {
		plain, query := e.secrets.Path(path)
		if before, after, _ := strings.Cut(path, "?"); before != plain || after != query {
			return false
		}
	}
	for _, name := range p.Headers() {
		if v, ok := http.GetHeaders()[name]; ok && e.secrets.Header(name, v) != v {
			return false
		}
	}
	return true
}
