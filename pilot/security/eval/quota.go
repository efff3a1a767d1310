package eval

import (
	"cmp"
	"slices"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// Layer is how special a QuotaPolicy is. Those of the root namespace are above those of
// other namespaces in the same layer.
type Layer uint8

// The layers, upper ones first.
const (
	meshLayer      Layer = iota // of the root namespace, for all that it has
	namespaceLayer              // of another namespace, for all that it has
	workloadLayer               // for some workloads, hosts, methods or paths
	callerLayer                 // for some callers
)

func (l Layer) String() string {
	return []string{"mesh", "namespace", "workload", "caller"}[l]
}

// layerOf gives the layer of a policy.
func layerOf(root string, pol *model.QuotaPolicy) Layer {
	switch {
	case slices.ContainsFunc(pol.Match, func(m model.QuotaMatch) bool { return m.Callers() }):
		return callerLayer
	case len(pol.Selector) > 0 || len(pol.Match) > 0:
		return workloadLayer
	case pol.Namespace == root:
		return meshLayer
	}
	return namespaceLayer
}

// maxTakers and maxTakersText bound what is asked before a limit counts a request: how
// many policies, and how long the expression about them may be, which Envoy refuses
// beyond 100,000 characters. Of more policies that take requests out of one limit the
// later ones take out nothing.
const (
	maxTakers     = 512
	maxTakersText = 80_000
	// termText is the text about a policy beside its name, with some to spare.
	termText = 64
)

// CountedLimit is one limit in front of a workload. It counts the requests that its
// policy speaks of, except those that a taker takes out.
type CountedLimit struct {
	Policy *model.QuotaPolicy
	Index  int
	Layer  Layer
	Takers []Taker
}

// Taker takes the requests that its policy speaks of out of a limit above.
type Taker struct {
	Policy *model.QuotaPolicy
	// Index is the limit that stands in the place of the other, -1 if none does.
	Index int
	// Unless are policies that exempt from the limit in its place and may not from the
	// other: what one of them speaks of stays in the other.
	Unless []*model.QuotaPolicy
}

// Layers says of the limits in front of a workload, those of all its policies in their
// order, who takes requests out of them.
func Layers(root string, policies []*model.QuotaPolicy) []CountedLimit {
	l := newLayers(root, policies)
	var out []CountedLimit
	for _, pol := range policies {
		for i := range pol.Limits {
			out = append(out, CountedLimit{Policy: pol, Index: i, Layer: layerOf(root, pol), Takers: l.takers(pol, &pol.Limits[i])})
		}
	}
	return out
}

// Counts says whether the limit counts a request, and if not who took it out, nil if
// its own policy does not speak of it.
func (l *CountedLimit) Counts(speaks func(*model.QuotaPolicy) bool) (bool, *Taker) {
	if !speaks(l.Policy) {
		return false, nil
	}
	for i := range l.Takers {
		t := &l.Takers[i]
		if speaks(t.Policy) && !slices.ContainsFunc(t.Unless, speaks) {
			return false, t
		}
	}
	return true, nil
}

type layers struct {
	root string
	// exempting and overriding are the policies that do so to others, if these let them.
	exempting, overriding []*model.QuotaPolicy
}

func newLayers(root string, policies []*model.QuotaPolicy) *layers {
	l := &layers{root: root}
	for _, pol := range policies {
		switch pol.Upper {
		case model.QuotaExempt:
			l.exempting = append(l.exempting, pol)
		case model.QuotaOverride:
			l.overriding = append(l.overriding, pol)
		}
	}
	return l
}

// takers gives those of one limit, who exempt first.
func (l *layers) takers(of *model.QuotaPolicy, limit *model.QuotaLimit) []Taker {
	var out []Taker
	var asked room
	for _, pol := range l.exempting {
		if !l.may(pol, of, model.QuotaExempt) {
			continue
		}
		t := Taker{Policy: pol, Index: -1}
		if !asked.take(&t) {
			return out
		}
		out = append(out, t)
	}
	key := limit.Key()
	for _, pol := range l.overriding {
		if !l.may(pol, of, model.QuotaOverride) {
			continue
		}
		for i := range pol.Limits {
			if pol.Limits[i].Key() != key {
				continue
			}
			t := Taker{Policy: pol, Index: i, Unless: l.unless(pol, of)}
			if !asked.take(&t) {
				return out
			}
			out = append(out, t)
		}
	}
	return out
}

// room is what was taken of maxTakers and of maxTakersText.
type room struct{ policies, text int }

// take says whether there is room for a taker.
func (r *room) take(t *Taker) bool {
	for _, pol := range append([]*model.QuotaPolicy{t.Policy}, t.Unless...) {
		r.policies++
		r.text += termText + len(pol.Namespace) + len(pol.Name)
	}
	return r.policies <= maxTakers && r.text <= maxTakersText
}

// unless gives the policies that exempt from one and may not from the other.
func (l *layers) unless(from, other *model.QuotaPolicy) []*model.QuotaPolicy {
	var out []*model.QuotaPolicy
	for _, pol := range l.exempting {
		if l.may(pol, from, model.QuotaExempt) && !l.may(pol, other, model.QuotaExempt) {
			out = append(out, pol)
		}
	}
	return out
}

// may says whether a policy does so to the limits of another, and may. One that is only
// observed does nothing.
func (l *layers) may(pol, to *model.QuotaPolicy, what string) bool {
	if pol.Upper != what || pol.Observe || l.compare(to, pol) >= 0 {
		return false
	}
	return pol.Namespace == l.root || to.Namespace != l.root || to.Lower == what || to.Lower == model.QuotaExempt
}

// Forbidden gives the policies above one, of the same proxy, that it would change and
// may not.
func Forbidden(root string, pol *model.QuotaPolicy, policies []*model.QuotaPolicy) []*model.QuotaPolicy {
	l := layers{root: root}
	return slices.DeleteFunc(slices.Clone(policies), func(of *model.QuotaPolicy) bool {
		return len(of.Limits) == 0 || l.compare(of, pol) >= 0 || l.may(pol, of, pol.Upper)
	})
}

// compare is below 0 if a is above b.
func (l *layers) compare(a, b *model.QuotaPolicy) int {
	own := func(p *model.QuotaPolicy) int {
		if p.Namespace == l.root {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(layerOf(l.root, a), layerOf(l.root, b)), cmp.Compare(own(a), own(b)))
}

// Speaks says whether a QuotaPolicy speaks of a request.
func Speaks(d Domains, pol *model.QuotaPolicy, r *Request) bool {
	return len(pol.Match) == 0 || slices.ContainsFunc(pol.Match, func(m model.QuotaMatch) bool {
		clauses := []Clause{
			{Key: condition.Principal, Values: m.Principals},
			{Key: condition.Namespace, Values: m.Namespaces},
			{Key: AnyFormHostKey, Values: m.Hosts},
			{Key: MethodKey, Values: m.Methods},
			{Key: PathKey, Values: m.Paths},
		}
		for _, claim := range m.Claims {
			clauses = append(clauses, Clause{Key: condition.Claims + "[" + claim.Name + "]", Values: claim.Values})
		}
		for _, c := range clauses {
			c.domains = &d
			if len(c.Values) > 0 && !c.Holds(r) {
				return false
			}
		}
		return true
	})
}
