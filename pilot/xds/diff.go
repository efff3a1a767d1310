package xds

import (
	"slices"
	"strings"
)

// change is what turns the state of a client into another.
type change struct {
	// set are resources to create or replace, sorted by name.
	set []*Resource
	// remove are names to drop, sorted.
	remove []string
}

func (c change) empty() bool { return len(c.set) == 0 && len(c.remove) == 0 }

// selection says which part of a target counts for a client.
type selection struct {
	// wildcard: everything; otherwise the names.
	wildcard bool
	names    []string // sorted
	// removals says whether what the target lacks is removed.
	removals bool
	// newOnly leaves what the client already has as it is.
	newOnly bool
	// held are names of which the client keeps what it has, and gets nothing new.
	held map[string]bool
	// refused resources are left out.
	refused map[*Resource]struct{}
}

func (s *selection) has(name string) bool {
	if s.wildcard {
		return true
	}
	_, ok := slices.BinarySearch(s.names, name)
	return ok
}

// diff compares what a client was told with the target. Both are sorted by name.
func diff(told, target []*Resource, sel selection) change {
	var c change
	if sameList(told, target) {
		return c
	}
	i, j := 0, 0
	for i < len(told) || j < len(target) {
		switch order(told, i, target, j) {
		case -1: // only told
			if sel.removals && !sel.newOnly && sel.has(told[i].Name) {
				c.remove = append(c.remove, told[i].Name)
			}
			i++
		case 1: // only in the target
			c.add(target[j], &sel)
			j++
		default:
			if !sel.newOnly && !told[i].same(target[j]) {
				c.add(target[j], &sel)
			}
			i++
			j++
		}
	}
	return c
}

func (c *change) add(r *Resource, sel *selection) {
	if _, refused := sel.refused[r]; !refused && sel.has(r.Name) && !sel.held[r.Name] {
		c.set = append(c.set, r)
	}
}

// order tells which list has the smaller name: -1 a, 1 b, 0 the same name.
func order(a []*Resource, i int, b []*Resource, j int) int {
	switch {
	case i >= len(a):
		return 1
	case j >= len(b):
		return -1
	}
	return strings.Compare(a[i].Name, b[j].Name)
}

// sameList says whether two lists are one and the same array.
func sameList(a, b []*Resource) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// apply returns told after the change. Where the result equals the target, the
// target's own array is returned, so that clients with equal state share it.
func apply(told []*Resource, c change, target []*Resource) []*Resource {
	out := make([]*Resource, 0, len(told)+len(c.set))
	i, j, k := 0, 0, 0
	for i < len(told) || j < len(c.set) {
		switch order(told, i, c.set, j) {
		case -1:
			for k < len(c.remove) && c.remove[k] < told[i].Name {
				k++
			}
			if k == len(c.remove) || c.remove[k] != told[i].Name {
				out = append(out, told[i])
			}
			i++
		case 1:
			out = append(out, c.set[j])
			j++
		default:
			out = append(out, c.set[j])
			i++
			j++
		}
	}
	return shared(out, target)
}

// shared returns target instead of list when both hold the same resources.
func shared(list, target []*Resource) []*Resource {
	if len(list) != len(target) {
		return list
	}
	for i := range list {
		if !list[i].same(target[i]) {
			return list
		}
	}
	return target
}

// without returns told less the names for which drop is true; told itself if there are none.
func without(told []*Resource, drop func(name string) bool) []*Resource {
	for i, r := range told {
		if !drop(r.Name) {
			continue
		}
		out := append(make([]*Resource, 0, len(told)-1), told[:i]...)
		for _, r := range told[i+1:] {
			if !drop(r.Name) {
				out = append(out, r)
			}
		}
		return out
	}
	return told
}
