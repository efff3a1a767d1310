package region

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxLists bounds the combinations that a list of texts may have.
const maxLists = 4096

// cell is the values of a variable that no test tells apart.
type cell struct {
	// truth are the tests that hold.
	truth   Set
	witness string
	absent  bool
}

// Space is the variables of a question, in the order in which answers tell them.
type Space struct{ vars []*Var }

// Var is one variable.
type Var struct {
	name  string
	index int
	// absent: the variable may be missing; lists: it may be a list of texts, of which
	// a test wants one.
	absent, lists, address bool
	tests                  []test
	// places are where each test is among them.
	places map[test]int
	cells  []cell
	sets   []Set // of the tests
	// automaton has the tests of a text.
	automaton *automaton
}

type test struct {
	label, expression string
	block             netip.Prefix
	// domain tests bound what there is: to what matches, or, with never, to what does not.
	domain, never bool
}

// Test is a test of a variable, whose Set is known after Split.
type Test struct {
	v *Var
	i int
}

// Text adds a variable whose values are texts.
func (s *Space) Text(name string) *Var { return s.add(&Var{name: name}) }

// Address adds a variable whose values are network addresses.
func (s *Space) Address(name string) *Var { return s.add(&Var{name: name, address: true}) }

func (s *Space) add(v *Var) *Var {
	v.index = len(s.vars)
	s.vars = append(s.vars, v)
	return v
}

// MayBeAbsent says that the variable need not be there: no test holds then.
func (v *Var) MayBeAbsent() *Var {
	v.absent = true
	return v
}

// MayBeList says that the variable may have several values, or none: a test holds
// if it does of one of them.
func (v *Var) MayBeList() *Var {
	v.lists = true
	return v
}

// Match adds a test: whole values that match a regular expression. label tells it
// to people.
func (v *Var) Match(label, expression string) Test {
	return v.test(test{label: label, expression: expression})
}

// Within adds a test: addresses of a block.
func (v *Var) Within(label string, block netip.Prefix) Test {
	return v.test(test{label: label, block: block.Masked()})
}

// Domain bounds the values that there are.
func (v *Var) Domain(expression string) { v.test(test{expression: expression, domain: true}) }

// Never bounds the values that there are to those that do not match.
func (v *Var) Never(expression string) {
	v.test(test{expression: expression, domain: true, never: true})
}

func (v *Var) test(t test) Test {
	i, known := v.places[t]
	if !known {
		if v.places == nil {
			v.places = map[test]int{}
		}
		i = len(v.tests)
		v.places[t] = i
		v.tests = append(v.tests, t)
	}
	return Test{v, i}
}

// Set is the cells of which the test holds.
func (t Test) Set() Set { return t.v.sets[t.i] }

// All is every cell of the variable.
func (v *Var) All() Set {
	out := newSet(len(v.cells))
	for i := range v.cells {
		out.add(i)
	}
	return out
}

// Absent is the cell of what is not there, empty if that cannot be.
func (v *Var) Absent() Set {
	out := newSet(len(v.cells))
	for i, c := range v.cells {
		if c.absent {
			out.add(i)
		}
	}
	return out
}

// Split finds the cells of all variables. No test can be added after it.
func (s *Space) Split() error {
	for _, v := range s.vars {
		if err := v.split(); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

func (v *Var) split() error {
	if v.address {
		var blocks []netip.Prefix
		for _, t := range v.tests {
			blocks = append(blocks, t.block)
		}
		v.cells = addressCells(blocks)
	} else {
		var expressions []string
		for _, t := range v.tests {
			expressions = append(expressions, t.expression)
		}
		var err error
		if v.automaton, err = newAutomaton(expressions); err != nil {
			return err
		}
		cells, err := v.automaton.cells()
		if err != nil {
			return err
		}
		v.cells = v.within(cells)
	}
	if v.lists {
		if err := v.addLists(); err != nil {
			return err
		}
	}
	if v.absent {
		v.cells = append([]cell{{truth: newSet(len(v.tests)), absent: true}}, v.cells...)
	}
	for range v.tests {
		v.sets = append(v.sets, newSet(len(v.cells)))
	}
	for j, c := range v.cells {
		for i := range c.truth.all() {
			v.sets[i].add(j)
		}
	}
	return nil
}

// within leaves out what is not of the domain.
func (v *Var) within(cells []cell) []cell {
	var domains []int
	for i, t := range v.tests {
		if t.domain {
			domains = append(domains, i)
		}
	}
	return slices.DeleteFunc(cells, func(c cell) bool {
		return slices.ContainsFunc(domains, func(i int) bool { return c.truth.has(i) == v.tests[i].never })
	})
}

// addLists adds what lists of values can be: each test holds that holds of one.
func (v *Var) addLists() error {
	seen := map[string]bool{}
	for _, c := range v.cells {
		seen[setKey(c.truth)] = true
	}
	singles := slices.Clone(v.cells)
	for i := 0; i < len(v.cells); i++ {
		for _, one := range singles {
			truth := v.cells[i].truth.Or(one.truth)
			if seen[setKey(truth)] {
				continue
			}
			if len(v.cells) == maxLists {
				return errTooLarge
			}
			seen[setKey(truth)] = true
			v.cells = append(v.cells, cell{truth: truth, witness: v.cells[i].witness + "," + one.witness})
		}
	}
	if none := newSet(len(v.tests)); !seen[setKey(none)] {
		v.cells = append(v.cells, cell{truth: none, witness: ""})
	}
	return nil
}

// Locate gives the cell of one value.
func (v *Var) Locate(value string) (Set, error) { return v.LocateList([]string{value}) }

func (v *Var) cellOf(truth Set, value string) (Set, error) {
	out := newSet(len(v.cells))
	for i, c := range v.cells {
		if !c.absent && c.truth.equal(truth) {
			out.add(i)
			return out, nil
		}
	}
	return nil, fmt.Errorf("%s: %q cannot be", v.name, value)
}

// Describe tells a set of cells by the tests, as shortly as it finds; "" for all.
func (v *Var) Describe(s Set) string {
	all := v.All()
	switch {
	case s.equal(all):
		return ""
	case s.equal(v.Absent()):
		return "absent"
	case v.absent && s.equal(all.Minus(v.Absent())):
		return "present"
	}
	if labels, ok := v.cover(s, all); ok {
		return strings.Join(labels, " or ")
	}
	if labels, ok := v.cover(all.Minus(s), all); ok {
		return "not " + strings.Join(labels, ", not ")
	}
	for i, t := range v.tests { // the widest test that contains it, less what is not of it
		within := v.sets[i]
		if t.domain || !s.inside(within) {
			continue
		}
		if labels, ok := v.cover(within.Minus(s), within); ok {
			return t.label + ", but not " + strings.Join(labels, ", not ")
		}
	}
	return v.enumerate(s)
}

// enumerate tells each cell by the tests that hold of it and those that do not.
func (v *Var) enumerate(s Set) string {
	var out []string
	for i, c := range v.cells {
		if !s.has(i) {
			continue
		}
		if c.absent {
			out = append(out, "absent")
			continue
		}
		var is, not []string
		for j, t := range v.tests {
			switch {
			case t.domain:
			case c.truth.has(j):
				is = append(is, t.label)
			default:
				not = append(not, "not "+t.label)
			}
		}
		out = append(out, strings.Join(append(is, not...), " and "))
	}
	return strings.Join(out, "; or ")
}

// Example gives one value of a set, and whether there is one: what is absent has none.
func (v *Var) Example(s Set) (string, bool) {
	i := s.first()
	if i >= 0 && v.cells[i].absent {
		if more := s.Minus(v.Absent()); !more.Empty() && s.equal(v.All()) {
			return "", false
		}
	}
	if i < 0 || v.cells[i].absent {
		return "", false
	}
	return v.cells[i].witness, true
}

// Name is that under which the variable was made.
func (v *Var) Name() string { return v.name }

// LocateList gives the cell of a list of values.
func (v *Var) LocateList(values []string) (Set, error) {
	truth := newSet(len(v.tests))
	for _, value := range values {
		holds, err := v.truth(value)
		if err != nil {
			return nil, err
		}
		truth = truth.Or(holds)
	}
	return v.cellOf(truth, strings.Join(values, ","))
}

// truth gives the tests that hold of one value.
func (v *Var) truth(value string) (Set, error) {
	if v.address {
		a, err := netip.ParseAddr(value)
		out := newSet(len(v.tests))
		for i, t := range v.tests {
			if t.block.Contains(a) {
				out.add(i)
			}
		}
		return out, err
	}
	at := v.automaton.closure(v.automaton.starts)
	for _, r := range value {
		at = v.automaton.step(at, r)
	}
	return v.automaton.accepted(at), nil
}
