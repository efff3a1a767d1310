package region

import "container/heap"

// cover finds tests whose sets, of the cells within, make up s: each time the first of
// those with the most cells that are still missing.
func (v *Var) cover(s, within Set) ([]string, bool) {
	left := s
	var labels []string
	if absent := v.Absent().And(s); !absent.Empty() {
		left, labels = left.Minus(absent), append(labels, "absent")
	}
	parts := v.partsOf(s, within, left)
	for !left.Empty() {
		// What a test adds only becomes less: one that still adds what it did is the best.
		for len(parts) > 0 {
			gain := v.sets[parts[0].test].And(within).common(left)
			if gain == parts[0].gain {
				break
			}
			parts[0].gain = gain
			heap.Fix(&parts, 0)
		}
		if len(parts) == 0 || parts[0].gain == 0 {
			return nil, false
		}
		best := parts[0].test
		left = left.Minus(v.sets[best])
		labels = append(labels, v.tests[best].label)
	}
	return labels, true
}

// part is a test whose set is part of another, with the cells that it adds.
type part struct{ test, gain int }

// parts are a heap, the most first.
type parts []part

func (v *Var) partsOf(s, within, left Set) parts {
	var out parts
	for i, t := range v.tests {
		if t.domain {
			continue
		}
		if set := v.sets[i].And(within); set.inside(s) {
			if gain := set.common(left); gain > 0 {
				out = append(out, part{i, gain})
			}
		}
	}
	heap.Init(&out)
	return out
}

func (p parts) Len() int { return len(p) }
func (p parts) Less(i, j int) bool {
	return p[i].gain > p[j].gain || p[i].gain == p[j].gain && p[i].test < p[j].test
}
func (p parts) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *parts) Push(x any)   { *p = append(*p, x.(part)) } //nolint:forcetypeassert // heap gives back what it got
func (p *parts) Pop() any {
	last := (*p)[len(*p)-1]
	*p = (*p)[:len(*p)-1]
	return last
}
