package placement

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/fact"
	"github.com/writ-mesh/writ/internal/identity"
)

const (
	// maxFacts bounds the facts of a registration, maxFactBytes their length
	// together: they stand in an entry of the ledger.
	maxFacts     = 32
	maxFactBytes = 16 << 10
)

// Registration gives an identity to who has all of some facts on a node. It is
// not changed once it is made.
type Registration struct {
	// ID follows from the other fields.
	ID       string
	SPIFFEID spiffeid.ID
	// Node is empty for every node.
	Node string
	// Facts are in written form (package fact), sorted, each once.
	Facts []string
}

// NewRegistration checks a registration for a trust domain and gives it its id.
func NewRegistration(td spiffeid.TrustDomain, id spiffeid.ID, node string, facts []string) (*Registration, error) {
	if !id.MemberOf(td) || id.Path() == "" || id.Path() == "/writ" || strings.HasPrefix(id.Path(), "/writ/") {
		return nil, fmt.Errorf("%s is no workload identity of the trust domain %s: /writ is for Writ's own", id, td.Name())
	}
	if node != "" {
		if _, err := identity.Node(td, node); err != nil {
			return nil, err
		}
	}
	facts = slices.Compact(slices.Sorted(slices.Values(facts)))
	if len(facts) == 0 || len(facts) > maxFacts {
		return nil, fmt.Errorf("%d facts, want 1 to %d", len(facts), maxFacts)
	}
	total := 0
	for _, f := range facts {
		if _, _, err := fact.Parse(f); err != nil {
			return nil, err
		}
		total += len(f)
	}
	if total > maxFactBytes {
		return nil, fmt.Errorf("the facts have %d bytes, want at most %d", total, maxFactBytes)
	}
	// No part has a line feed, so that no two registrations are written alike.
	sum := sha256.Sum256([]byte(id.String() + "\n" + node + "\n" + strings.Join(facts, "\n")))
	return &Registration{ID: hex.EncodeToString(sum[:16]), SPIFFEID: id, Node: node, Facts: facts}, nil
}

// registrations are those in force, as part of a Table.
type registrations struct {
	byID map[string]*Registration
	// byNode has them by node; "" are those of every node.
	byNode map[string]map[string]*Registration
	// given counts the registrations that give an identity to a node.
	given map[string]map[spiffeid.ID]int
	// followers by node.
	followers map[string]map[*Follower]struct{}
}

func newRegistrations() registrations {
	return registrations{
		byID: make(map[string]*Registration), byNode: make(map[string]map[string]*Registration),
		given: make(map[string]map[spiffeid.ID]int), followers: make(map[string]map[*Follower]struct{}),
	}
}

func (r *registrations) gives(node string, id spiffeid.ID) bool {
	return r.given[node][id] > 0 || r.given[""][id] > 0
}

// ChangeRegistrations adds and drops registrations; all says that those of put are
// all there are. Adding one that is there and dropping one that is not do nothing.
func (t *Table) ChangeRegistrations(put []*Registration, drop []string, all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if all {
		select {
		case <-t.loaded:
		default:
			close(t.loaded)
		}
		keep := make(map[string]bool, len(put))
		for _, r := range put {
			keep[r.ID] = true
		}
		for id := range t.registered.byID {
			if !keep[id] {
				drop = append(drop, id)
			}
		}
	}
	for _, id := range drop {
		if r := t.registered.byID[id]; r != nil {
			t.registered.drop(r)
		}
	}
	for _, r := range put {
		if t.registered.byID[r.ID] == nil {
			t.registered.add(r)
		}
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

func (r *registrations) add(n *Registration) {
	r.byID[n.ID] = n
	if r.byNode[n.Node] == nil {
		r.byNode[n.Node] = make(map[string]*Registration)
		r.given[n.Node] = make(map[spiffeid.ID]int)
	}
	r.byNode[n.Node][n.ID] = n
	r.given[n.Node][n.SPIFFEID]++
	r.tell(n, n)
}

func (r *registrations) drop(n *Registration) {
	delete(r.byID, n.ID)
	delete(r.byNode[n.Node], n.ID)
	if r.given[n.Node][n.SPIFFEID]--; r.given[n.Node][n.SPIFFEID] == 0 {
		delete(r.given[n.Node], n.SPIFFEID)
	}
	if len(r.byNode[n.Node]) == 0 {
		delete(r.byNode, n.Node)
		delete(r.given, n.Node)
	}
	r.tell(n, nil)
}

// tell notes for the followers of n's node what n is now.
func (r *registrations) tell(n, now *Registration) {
	nodes := [][]*Follower{slices.Collect(maps.Keys(r.followers[n.Node]))}
	if n.Node == "" {
		nodes = nil
		for _, of := range r.followers {
			nodes = append(nodes, slices.Collect(maps.Keys(of)))
		}
	}
	for _, of := range nodes {
		for _, f := range of {
			f.pending[n.ID] = now
			select {
			case f.more <- struct{}{}:
			default:
			}
		}
	}
}

// Loaded is closed when the registrations are known: ChangeRegistrations was called
// with all of them.
func (t *Table) Loaded() <-chan struct{} { return t.loaded }

// HasRegistration tells whether the registration is in force, or, with want
// false, that it is not; if need be it waits until ctx ends.
func (t *Table) HasRegistration(ctx context.Context, id string, want bool) bool {
	for {
		t.mu.Lock()
		has, changed := t.registered.byID[id] != nil, t.changed
		t.mu.Unlock()
		if has == want {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// Follower gets the registrations of one node and how they change.
type Follower struct {
	t    *Table
	node string
	more chan struct{}
	// guarded by Table.mu: what changed since it was last taken, nil for dropped.
	pending map[string]*Registration
}

// Follow returns the registrations of a node, by id, and a follower of their
// changes, which has to be closed.
func (t *Table) Follow(node string) ([]*Registration, *Follower) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := &Follower{t: t, node: node, more: make(chan struct{}, 1), pending: make(map[string]*Registration)}
	if t.registered.followers[node] == nil {
		t.registered.followers[node] = make(map[*Follower]struct{})
	}
	t.registered.followers[node][f] = struct{}{}
	now := slices.Collect(maps.Values(t.registered.byNode[node]))
	now = slices.AppendSeq(now, maps.Values(t.registered.byNode[""]))
	slices.SortFunc(now, func(a, b *Registration) int { return cmp.Compare(a.ID, b.ID) })
	return now, f
}

// More is sent to when there is something to take.
func (f *Follower) More() <-chan struct{} { return f.more }

// Take returns what changed since the last call.
func (f *Follower) Take() (put []*Registration, dropped []string) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	for id, r := range f.pending {
		if r == nil {
			dropped = append(dropped, id)
		} else {
			put = append(put, r)
		}
	}
	clear(f.pending)
	slices.SortFunc(put, func(a, b *Registration) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(dropped)
	return put, dropped
}

// Close ends the following.
func (f *Follower) Close() {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	delete(f.t.registered.followers[f.node], f)
	if len(f.t.registered.followers[f.node]) == 0 {
		delete(f.t.registered.followers, f.node)
	}
}
