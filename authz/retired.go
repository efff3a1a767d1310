package authz

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/writ-mesh/writ/internal/decider"
	"github.com/writ-mesh/writ/internal/service"
)

// Bounds of what is retired. What they have no room for goes before its time, the oldest
// first, and whose routes name it is refused.
const (
	// maxRetired bounds the contents of one policy, so that who edits one without end
	// pushes out what is his own. A bundle may take hundreds of megabytes.
	maxRetired, maxRetiredBundles = 8, 1
	// retiredBytes is the memory for contents that are no bundles, about, beyond what the
	// set takes that they were in: one edit of everything always has room.
	retiredBytes = 64 << 20
	// A compiled module takes about so much, measured.
	programBytes, programBytesEach = 80 << 10, 60
)

// retireEvery is how often it is looked for contents whose time is over.
const retireEvery = time.Minute

// retired are contents of policies in whose place another one is in force, or none, by
// what proxies name them. They decide for proxies whose routes go with them: those that
// have not got the newest yet, and connections that drain. It is immutable.
type retired map[string]retiredPolicy

type retiredPolicy struct {
	*policy
	// until is when nobody is decided for by it any more, asked for or not: nobody can
	// keep in force what an author took back.
	until time.Time
}

func (p retiredPolicy) retired() decider.Retired {
	r := decider.Retired{Name: p.name, Ref: p.ref, Until: p.until, Weight: p.weight, Most: maxRetired}
	if p.bundle {
		r.Most = maxRetiredBundles
	}
	return r
}

func (r retired) find(ref string, now time.Time) *policy {
	if p, ok := r[ref]; ok && now.Before(p.until) {
		return p.policy
	}
	return nil
}

// following gives what is retired once next is in force in place of before, each policy
// by its name, and how many contents there was no room for.
func (r retired) following(before, next map[string]*policy, now, until time.Time) (out retired, dropped int) {
	list := slices.Collect(maps.Values(r))
	room := retiredBytes
	for _, p := range before {
		list = append(list, retiredPolicy{p, until})
		room += p.weight
	}
	list = slices.DeleteFunc(list, func(p retiredPolicy) bool {
		return !now.Before(p.until) || next[p.name] != nil && next[p.name].ref == p.ref
	})
	list, dropped = decider.KeepNewest(list, room, retiredPolicy.retired)
	out = make(retired, len(list))
	for _, p := range list {
		out[p.ref] = p
	}
	return out, dropped
}

// unexpired gives what is left at a time.
func (r retired) unexpired(now time.Time) retired {
	out := maps.Clone(r)
	maps.DeleteFunc(out, func(_ string, p retiredPolicy) bool { return !now.Before(p.until) })
	return out
}

// forgottenBy gives the names of the policies of which another set knows nothing.
func (s *policySet) forgottenBy(next *policySet) map[string]bool {
	out := make(map[string]bool)
	for name := range s.policies {
		out[name] = true
	}
	for _, p := range s.retired {
		out[p.name] = true
	}
	for name := range next.policies {
		delete(out, name)
	}
	for _, p := range next.retired {
		delete(out, p.name)
	}
	return out
}

// expire lets go of contents whose time is over, until ctx ends.
func (p *policies) expire(ctx context.Context) error {
	return service.Every(ctx, retireEvery, func(now time.Time) { p.forget(ctx, now) })
}

func (p *policies) forget(ctx context.Context, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.current.Load()
	next := *old
	next.retired = old.retired.unexpired(now)
	if len(next.retired) == len(old.retired) {
		return
	}
	next.forgotten = old.forgottenBy(&next)
	p.swapped(&next)
	p.current.Store(&next)
	p.log.InfoContext(ctx, "earlier contents of policies decide no more", slog.Int("gone", len(old.retired)-len(next.retired)), slog.Int("kept", len(next.retired)))
}
