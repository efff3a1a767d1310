package plans

import (
	"maps"
	"slices"
)

// Number is what a column of a table says of a plan or a caller.
type Number struct {
	// Requests may pass in the limit's time, or be under way.
	Requests uint32
	// Burst is how many of them at once, at most Requests; 0 if the table does not say.
	Burst uint32
}

// Table maps callers to numbers. It is safe for concurrent use because nothing changes
// it: a change makes another one that shares what is the same.
type Table struct {
	columns []string
	plans   []string // by index; a plan that is gone keeps its place
	byName  map[string]entry
	// planned and own are the rows of plans and of callers with numbers of their own, a
	// number for each column.
	planned, own []Number
	// fallback is for callers that are not in the table: of a plan, or one of nobody and
	// refused.
	fallback entry
	// base are the callers as they were read, changed what is otherwise since then.
	base    *index
	changed map[string]entry
	callers int
}

// entry is what a caller has: a plan by its index, numbers of its own by the index of
// their row and ownRow, or one of those below.
type entry uint32

const (
	ownRow entry = 1 << 31
	// nobody is not in the table, or not any more.
	nobody entry = 1<<31 - 1
	// refused may nothing.
	refused entry = 1<<31 - 2
)

// Columns are the names of the table's columns.
func (t *Table) Columns() []string { return slices.Clone(t.columns) }

// Callers is how many callers the table names.
func (t *Table) Callers() int { return t.callers }

// The ways to numbers.
const (
	// byNothing: the table says nothing of the caller and has no default, or has no such
	// column, or there is no table: the limit's own numbers hold.
	byNothing = iota
	// byPlan: the caller has a plan.
	byPlan
	// byItself: the caller has numbers of its own.
	byItself
	// byDefault: the caller is not in the table and has its default plan.
	byDefault
	// byRefusal: the caller is not in the table, which refuses such callers.
	byRefusal
)

// Found is what was found for a caller.
type Found struct {
	Number Number
	// Plan is the name of the plan that it comes from, if it comes from one.
	Plan string

	by int // how it was found: byNothing, byPlan and so on
}

// Nothing says that nothing was found: the limit's own numbers hold.
func (f Found) Nothing() bool { return f.by == byNothing }

// String says where a number comes from.
func (f Found) String() string {
	switch f.by {
	case byPlan:
		return "plan " + f.Plan
	case byItself:
		return "the caller's own numbers"
	case byDefault:
		return "plan " + f.Plan + ", the default"
	case byRefusal:
		return "refused, unknown to the callers"
	}
	return "nothing"
}

// Find gives a caller's number of a column; "" is the only column.
func (t *Table) Find(caller, column string) Found {
	col := t.column(column)
	if col < 0 {
		return Found{}
	}
	e, by := t.entry(caller), byPlan
	if e == nobody {
		e, by = t.fallback, byDefault
	}
	switch {
	case e == nobody:
		return Found{}
	case e == refused:
		return Found{by: byRefusal}
	case e&ownRow != 0:
		return Found{Number: t.own[int(e&^ownRow)*len(t.columns)+col], by: byItself}
	default:
		return Found{Number: t.planned[int(e)*len(t.columns)+col], by: by, Plan: t.plans[e]}
	}
}

// column is the index of a column, -1 if there is none of this name.
func (t *Table) column(name string) int {
	if name == "" && len(t.columns) == 1 {
		return 0
	}
	return slices.Index(t.columns, name)
}

// entry is what the table has of a caller.
func (t *Table) entry(caller string) entry {
	if len(t.changed) > 0 {
		if e, ok := t.changed[caller]; ok {
			return e
		}
	}
	return t.base.find(caller)
}

// overlay bounds what is kept beside base: all of it is copied with each change.
func (t *Table) overlay() int { return max(1024, t.base.len()/64) }

// set gives a table in which some callers have something else.
func (t *Table) set(changes map[string]entry, own []Number) *Table {
	out := *t
	out.own = own
	out.changed = maps.Clone(t.changed)
	if out.changed == nil {
		out.changed = make(map[string]entry, len(changes))
	}
	for caller, e := range changes {
		switch before := t.entry(caller); {
		case before == nobody && e != nobody:
			out.callers++
		case before != nobody && e == nobody:
			out.callers--
		}
		out.changed[caller] = e
	}
	// A caller that is changed again and again leaves a row behind each time.
	if rows := len(own) / len(t.columns); len(out.changed) > out.overlay() || rows > out.callers+out.overlay() {
		out.compact()
	}
	return &out
}

// compact makes a new base of all that is known, with the rows that are still used.
func (t *Table) compact() {
	base, own := newIndex(), []Number(nil)
	take := func(caller []byte, e entry) {
		if e == nobody {
			return
		}
		if e&ownRow != 0 {
			row := t.own[int(e&^ownRow)*len(t.columns):][:len(t.columns)]
			own = append(own, row...)
			e = ownRow | entry(len(own)/len(t.columns)-1) //nolint:gosec // no more than callers
		}
		base.put(caller, e)
	}
	t.base.each(func(caller []byte, e entry) {
		if _, otherwise := t.changed[string(caller)]; !otherwise {
			take(caller, e)
		}
	})
	for caller, e := range t.changed {
		take([]byte(caller), e)
	}
	base.clip()
	t.base, t.own, t.changed = base, own, nil
}

// users is how many callers have a plan.
func (t *Table) users(plan entry) int {
	n := 0
	t.base.each(func(caller []byte, e entry) {
		if e != plan {
			return
		}
		if _, otherwise := t.changed[string(caller)]; !otherwise {
			n++
		}
	})
	for _, e := range t.changed {
		if e == plan {
			n++
		}
	}
	return n
}
