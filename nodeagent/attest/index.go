package attest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/fact"
)

// Registration says that who has all of some facts has an identity.
type Registration struct {
	// ID names the registration.
	ID string
	// SPIFFEID is the identity.
	SPIFFEID spiffeid.ID
	// Facts are in written form (package fact), one at least.
	Facts []string
}

// entry is a registration in the index.
type entry struct {
	id       string
	spiffeID spiffeid.ID
	facts    []uint32 // numbers of facts, ascending
	next     *entry   // the next one under the same fact
}

// index finds the registrations that a caller's facts fulfil. Each stands under
// the rarest of its facts, so that a look-up costs as many steps as the caller
// has facts and few more, however many registrations there are.
type index struct {
	byID map[string]*entry
	// numbers are those of the facts of all registrations.
	numbers map[string]uint32
	names   []string // by number, "" if it is free
	uses    []uint32 // by number, in how many registrations it is
	under   []*entry // by number, the first of those that stand under the fact
	free    []uint32
	byKind  map[fact.Kind]int // how many facts in use are of a kind
	needed  kinds             // those with one, looked at for each caller
	// listing has the ids that a full list has named so far, nil without one.
	listing map[string]bool
}

func newIndex() *index {
	return &index{byID: make(map[string]*entry), numbers: make(map[string]uint32), byKind: make(map[fact.Kind]int)}
}

// needs are the kinds of the facts of all registrations.
func (x *index) needs() kinds { return x.needed }

// put adds or replaces a registration.
func (x *index) put(r Registration) error {
	if r.ID == "" || len(r.Facts) == 0 {
		return fmt.Errorf("registration %q of %s has no id or no facts", r.ID, r.SPIFFEID)
	}
	kindOf := make(map[string]fact.Kind, len(r.Facts))
	for _, f := range r.Facts {
		k, _, err := fact.Parse(f)
		if err != nil {
			return fmt.Errorf("registration %s: %w", r.ID, err)
		}
		kindOf[f] = k
	}
	if x.listing != nil {
		x.listing[r.ID] = true
	}
	x.remove(r.ID)
	e := &entry{id: r.ID, spiffeID: r.SPIFFEID, facts: make([]uint32, 0, len(kindOf))}
	for f, k := range kindOf {
		e.facts = append(e.facts, x.use(f, k))
	}
	slices.Sort(e.facts)
	x.byID[e.id] = e
	at := x.rarest(e.facts)
	e.next, x.under[at] = x.under[at], e
	return nil
}

func (x *index) use(f string, k fact.Kind) uint32 {
	n, ok := x.numbers[f]
	if !ok {
		if last := len(x.free) - 1; last >= 0 {
			n, x.free = x.free[last], x.free[:last]
		} else {
			n = uint32(len(x.names))
			x.names, x.uses, x.under = append(x.names, ""), append(x.uses, 0), append(x.under, nil)
		}
		f = strings.Clone(f) // not part of a whole message
		x.names[n], x.numbers[f] = f, n
		x.byKind[k]++
		x.needed |= kindsOf(k)
	}
	x.uses[n]++
	return n
}

func (x *index) rarest(facts []uint32) uint32 {
	return slices.MinFunc(facts, func(a, b uint32) int { return cmp.Compare(x.uses[a], x.uses[b]) })
}

// remove drops a registration; one that is not there is no error.
func (x *index) remove(id string) {
	e := x.byID[id]
	if e == nil {
		return
	}
	delete(x.byID, id)
	for _, n := range e.facts {
		for at := &x.under[n]; *at != nil; at = &(*at).next {
			if *at == e {
				*at = e.next
				break
			}
		}
		if x.uses[n]--; x.uses[n] == 0 {
			x.unuse(n)
		}
	}
}

// sweep ends a full list: what it did not name goes.
func (x *index) sweep() {
	if x.listing == nil {
		return
	}
	for id := range x.byID {
		if !x.listing[id] {
			x.remove(id)
		}
	}
	x.listing = nil
}

func (x *index) unuse(n uint32) {
	f := x.names[n]
	delete(x.numbers, f)
	x.names[n], x.free = "", append(x.free, n)
	k, _, err := fact.Parse(f)
	if err != nil {
		return // put takes only what can be parsed
	}
	if x.byKind[k]--; x.byKind[k] == 0 {
		delete(x.byKind, k)
		x.needed &^= kindsOf(k)
	}
}

// known gives the numbers of those facts that are in some registration.
func (x *index) known(facts []string) map[uint32]bool {
	out := make(map[uint32]bool)
	for _, f := range facts {
		if n, ok := x.numbers[f]; ok {
			out[n] = true
		}
	}
	return out
}

// match returns those registrations that the facts fulfil and that have the most
// facts among them.
func (x *index) match(facts []string) []*entry {
	have := x.known(facts)
	var best []*entry
	for n := range have {
		for e := x.under[n]; e != nil; e = e.next {
			if len(best) > 0 && len(e.facts) < len(best[0].facts) || slices.ContainsFunc(e.facts, func(f uint32) bool { return !have[f] }) {
				continue
			}
			if len(best) > 0 && len(e.facts) > len(best[0].facts) {
				best = best[:0]
			}
			best = append(best, e)
		}
	}
	slices.SortFunc(best, func(a, b *entry) int { return cmp.Compare(a.id, b.id) })
	return best
}

// Near is a registration that a caller does not fulfil, or not alone.
type Near struct {
	Registration
	// Missing are those of its facts that the caller does not have.
	Missing []string
}

// nearest returns at most limit registrations of which the caller has a fact,
// those with the fewest facts missing first.
func (x *index) nearest(facts []string, limit int) []Near {
	have := x.known(facts)
	type scored struct {
		e       *entry
		matched int
	}
	var all []scored
	for _, e := range x.byID {
		matched := 0
		for _, f := range e.facts {
			if have[f] {
				matched++
			}
		}
		if matched > 0 {
			all = append(all, scored{e, matched})
		}
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(len(a.e.facts)-a.matched, len(b.e.facts)-b.matched), cmp.Compare(b.matched, a.matched), cmp.Compare(a.e.id, b.e.id))
	})
	out := make([]Near, 0, min(limit, len(all)))
	for _, s := range all[:min(limit, len(all))] {
		n := Near{Registration: x.registration(s.e)}
		for _, f := range s.e.facts {
			if !have[f] {
				n.Missing = append(n.Missing, x.names[f])
			}
		}
		slices.Sort(n.Missing)
		out = append(out, n)
	}
	return out
}

func (x *index) registration(e *entry) Registration {
	r := Registration{ID: e.id, SPIFFEID: e.spiffeID}
	for _, f := range e.facts {
		r.Facts = append(r.Facts, x.names[f])
	}
	slices.Sort(r.Facts)
	return r
}
