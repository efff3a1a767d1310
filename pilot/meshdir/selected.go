package meshdir

import (
	"maps"
	"slices"

	"github.com/writ-mesh/writ/pilot/model"
)

// place is a label in a namespace; without key it is the namespace itself. The
// namespace "" is all of them.
type place struct{ namespace, key, value string }

// labelled is something with labels.
type labelled[T any] struct {
	labels map[string]string
	of     T
}

// labelIndex finds things by a label of theirs. Each list is in the order in which
// they were added.
type labelIndex[T any] map[place][]labelled[T]

func (x labelIndex[T]) add(namespace string, labels map[string]string, of T) {
	for _, in := range slices.Compact([]string{"", namespace}) {
		all := place{namespace: in}
		x[all] = append(x[all], labelled[T]{labels, of})
		for k, v := range labels {
			at := place{in, k, v}
			x[at] = append(x[at], labelled[T]{labels, of})
		}
	}
}

// having gives those of a namespace, "" for all, that a selector matches.
func (x labelIndex[T]) having(namespace string, selector map[string]string) []T {
	fewest := x[place{namespace: namespace}]
	for k, v := range selector {
		if list := x[place{namespace, k, v}]; len(list) < len(fewest) {
			fewest = list
		}
	}
	var out []T
	for _, l := range fewest {
		if model.SelectorMatches(selector, l.labels) {
			out = append(out, l.of)
		}
	}
	return out
}

// policyIndex finds policies by a label that they ask for, the first by name; those
// that ask for none are under their namespace.
type policyIndex[P any] map[place][]labelled[P]

func (x policyIndex[P]) add(namespace string, selector map[string]string, policy P) {
	at := place{namespace: namespace}
	if keys := slices.Sorted(maps.Keys(selector)); len(keys) > 0 {
		at.key, at.value = keys[0], selector[keys[0]]
	}
	x[at] = append(x[at], labelled[P]{selector, policy})
}

// some says whether check is true for a policy of the workload's namespace, or of
// the root namespace, that selects it. It asks in no particular order.
func (x policyIndex[P]) some(root string, w workload, check func(P) bool) bool {
	found := func(at place) bool {
		return slices.ContainsFunc(x[at], func(p labelled[P]) bool { return model.SelectorMatches(p.labels, w.Labels) && check(p.of) })
	}
	for _, namespace := range slices.Compact([]string{w.Namespace, root}) {
		if found(place{namespace: namespace}) {
			return true
		}
		for k, v := range w.Labels {
			if found(place{namespace, k, v}) {
				return true
			}
		}
	}
	return false
}
