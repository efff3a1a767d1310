package region

import (
	"encoding/binary"
	"slices"
)

// Constraint wants a variable within a set.
type Constraint struct {
	Var *Var
	Set Set
}

// Term holds where all its constraints do; of several for one variable all count.
type Term []Constraint

// State is what is known of a group of terms, of which one has to hold.
type State uint8

// The states. Open means that it hangs on variables that are not looked at yet.
const (
	Open State = iota
	True
	False
)

// Group is a group in one place of the space.
type Group struct {
	State State
	// Left is equal for groups of which the same terms are left.
	Left string
}

// Region is a product of sets: the requests in which every constraint holds. What
// it does not name may be anything.
type Region struct {
	Constraints []Constraint
	Outcome     string
}

// maxNodes bounds the work of Partition, maxRegions its answer.
const (
	maxNodes   = 500_000
	maxRegions = 20_000
)

// Partition cuts the space into disjoint regions of one outcome each. decide is
// asked with as little as is known, and gives the outcome if that is enough; once
// no group is open it must. Regions with the outcome "" are left out.
func (s *Space) Partition(groups [][]Term, decide func([]Group) (outcome string, ok bool)) ([]Region, error) {
	p := &partition{space: s, decide: decide, memo: map[string]*node{}, nodes: map[string]*node{}}
	lefts := make([][]int, len(groups))
	ids := map[string]int{}
	for g, terms := range groups {
		for _, t := range terms {
			n, possible := s.normal(t)
			if !possible {
				continue
			}
			k := n.key()
			id, known := ids[k]
			if !known {
				id = len(p.terms)
				ids[k] = id
				p.terms = append(p.terms, n)
			}
			lefts[g] = append(lefts[g], id)
		}
		slices.Sort(lefts[g])
		lefts[g] = slices.Compact(lefts[g])
	}
	root, err := p.build(0, lefts)
	if err != nil {
		return nil, err
	}
	var out []Region
	err = root.walk(s, nil, func(r Region) error {
		if len(out) == maxRegions {
			return errTooLarge
		}
		out = append(out, r)
		return nil
	})
	return out, err
}

// normalTerm has for each variable the set that it wants, nil for any.
type normalTerm struct {
	sets []Set
	last int // the last variable with a set, -1 for none
}

// normal is not possible for a term that nothing satisfies.
func (s *Space) normal(t Term) (n normalTerm, possible bool) {
	n = normalTerm{sets: make([]Set, len(s.vars)), last: -1}
	for _, c := range t {
		set := c.Set
		if have := n.sets[c.Var.index]; have != nil {
			set = set.And(have)
		}
		n.sets[c.Var.index] = set
	}
	for i, set := range n.sets {
		switch {
		case set == nil:
		case set.Empty():
			return n, false
		case set.len() == len(s.vars[i].cells):
			n.sets[i] = nil
		default:
			n.last = i
		}
	}
	return n, true
}

func (n normalTerm) key() string {
	var out []byte
	for i, s := range n.sets {
		if s != nil {
			out = binary.LittleEndian.AppendUint32(out, uint32(i))
			out = append(out, setKey(s)...)
		}
	}
	return string(out)
}

// node is a leaf with an outcome, or asks for a variable.
type node struct {
	id       int
	variable int
	edges    []edge
	outcome  string
	leaf     bool
}

type edge struct {
	set Set
	to  *node
}

type partition struct {
	space  *Space
	terms  []normalTerm
	decide func([]Group) (string, bool)
	// memo is by variable and the terms that are left, nodes by what they are.
	memo, nodes map[string]*node
}

func (p *partition) build(variable int, lefts [][]int) (*node, error) {
	groups := make([]Group, len(lefts))
	for g, left := range lefts {
		groups[g] = p.group(variable, left)
	}
	if outcome, ok := p.decide(groups); ok {
		return p.node(&node{leaf: true, outcome: outcome}, "leaf "+outcome), nil
	}
	k := memoKey(variable, groups)
	if n := p.memo[k]; n != nil {
		return n, nil
	}
	if len(p.memo) == maxNodes {
		return nil, errTooLarge
	}
	n, err := p.split(variable, lefts)
	if err == nil {
		p.memo[k] = n
	}
	return n, err
}

// group says what is left of a group before a variable: a term without further
// constraints holds.
func (p *partition) group(variable int, left []int) Group {
	if len(left) == 0 {
		return Group{State: False}
	}
	var raw []byte
	for _, id := range left {
		if p.terms[id].last < variable {
			return Group{State: True}
		}
		raw = binary.LittleEndian.AppendUint32(raw, uint32(id))
	}
	return Group{Left: string(raw)}
}

func memoKey(variable int, groups []Group) string {
	out := binary.LittleEndian.AppendUint32(nil, uint32(variable))
	for _, g := range groups {
		out = append(out, byte(g.State))
		out = binary.LittleEndian.AppendUint32(out, uint32(len(g.Left)))
		out = append(out, g.Left...)
	}
	return string(out)
}

// split asks for the variable: cells that lead to the same node are one edge.
func (p *partition) split(variable int, lefts [][]int) (*node, error) {
	v := p.space.vars[variable]
	var edges []edge
	byNode := map[*node]int{}
	narrow := make([]narrowTerms, len(lefts))
	for g, left := range lefts {
		narrow[g] = p.narrow(variable, left)
	}
	for c := range v.cells {
		next := make([][]int, len(lefts))
		for g := range lefts {
			next[g] = narrow[g].in(c)
			for _, id := range narrow[g].others {
				if set := p.terms[id].sets[variable]; set == nil || set.has(c) {
					next[g] = append(next[g], id)
				}
			}
			slices.Sort(next[g])
		}
		n, err := p.build(variable+1, next)
		if err != nil {
			return nil, err
		}
		i, ok := byNode[n]
		if !ok {
			i = len(edges)
			byNode[n] = i
			edges = append(edges, edge{newSet(len(v.cells)), n})
		}
		edges[i].set.add(c)
	}
	if len(edges) == 1 {
		return edges[0].to, nil
	}
	k := binary.LittleEndian.AppendUint32(nil, uint32(variable))
	for _, e := range edges {
		k = binary.LittleEndian.AppendUint32(k, uint32(e.to.id))
		k = append(k, setKey(e.set)...)
	}
	return p.node(&node{variable: variable, edges: edges}, string(k)), nil
}

// maxNarrow is how many cells a term may have that is listed under each of them.
const maxNarrow = 8

// narrowTerms are the terms of a group by the cells of a variable, those of a few cells
// apart: of thousands that each want one text a cell meets its own.
type narrowTerms struct {
	byCell map[int][]int
	others []int
}

func (p *partition) narrow(variable int, left []int) narrowTerms {
	out := narrowTerms{byCell: map[int][]int{}}
	for _, id := range left {
		set := p.terms[id].sets[variable]
		if set == nil || set.len() > maxNarrow {
			out.others = append(out.others, id)
			continue
		}
		for c := range set.all() {
			out.byCell[c] = append(out.byCell[c], id)
		}
	}
	return out
}

func (n narrowTerms) in(c int) []int { return slices.Clone(n.byCell[c]) }

func (p *partition) node(n *node, key string) *node {
	if have := p.nodes[key]; have != nil {
		return have
	}
	n.id = len(p.nodes)
	p.nodes[key] = n
	return n
}

func (n *node) walk(s *Space, path []Constraint, found func(Region) error) error {
	if n.leaf {
		if n.outcome == "" {
			return nil
		}
		return found(Region{Constraints: slices.Clone(path), Outcome: n.outcome})
	}
	for _, e := range n.edges {
		if err := e.to.walk(s, append(path, Constraint{s.vars[n.variable], e.set}), found); err != nil {
			return err
		}
	}
	return nil
}
