package quota

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/writ-mesh/writ/internal/decider"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Bounds of what is kept of policies that were edited or removed. What there is no room
// for goes before its time, the oldest first.
const (
	// maxEarlier bounds the contents of one policy, so that who edits one without end
	// pushes out what is his own.
	maxEarlier = 8
	// earlierSize bounds all of them, by Limit.size, beyond what the set has that they were
	// in: one edit of everything always has room. A limit takes about a kilobyte.
	earlierSize = 1 << 16
)

// content is a policy as it was before an edit. It decides for proxies whose routes go
// with it: those that have not got the newest yet, and connections that drain.
type content struct {
	name, ref string
	// compiled are its limits as they were in force, limits what they are now.
	compiled, limits []*Limit
	// until is when it decides no more, asked for or not.
	until time.Time
}

func (c *content) retired() decider.Retired {
	return decider.Retired{Name: c.name, Ref: c.ref, Until: c.until, Weight: c.size(), Most: maxEarlier}
}

func (c *content) size() (n int) {
	for _, l := range c.compiled {
		n += l.size()
	}
	return n
}

// size is about how much a limit takes, in kilobytes.
func (l *Limit) size() int {
	if l.fair == nil {
		return 1
	}
	return 1 + len(l.fair.weights)/8
}

// After gives the table that follows another one at now: the contents that are replaced
// decide until then for who names them. It also says how many there was no room for.
func (t *Table) After(before *Table, now, until time.Time) (next *Table, dropped int) {
	var list []*content
	room := earlierSize
	for ref, name := range before.names {
		one := &content{name: name, ref: ref, compiled: before.limits[name], until: until}
		list = append(list, one)
		room += one.size()
	}
	list = append(list, slices.Collect(maps.Values(before.earlier))...)
	list = slices.DeleteFunc(list, func(c *content) bool {
		_, inForce := t.names[c.ref]
		return inForce || !now.Before(c.until)
	})
	list, dropped = decider.KeepNewest(list, room, (*content).retired)
	return t.with(list), dropped
}

// Unexpired gives the table without the contents whose time is over, itself if there are
// none.
func (t *Table) Unexpired(now time.Time) *Table {
	list := slices.Collect(maps.Values(t.earlier))
	list = slices.DeleteFunc(list, func(c *content) bool { return !now.Before(c.until) })
	if len(list) == len(t.earlier) {
		return t
	}
	list, _ = decider.KeepNewest(list, math.MaxInt, (*content).retired) // all, in order
	return t.with(list)
}

// Earlier is how many contents are kept that are not in force.
func (t *Table) Earlier() int { return len(t.earlier) }

// with gives the table with these contents, the newest first. Contents count by the same
// counters as long as these mean the same: so nobody gets or loses anything by an edit.
// A window cannot change on a counter that others use, for it is forgotten what is older:
// by naming a content with a shorter one somebody could free himself of the newest.
func (t *Table) with(list []*content) *Table {
	next := &Table{limits: t.limits, names: t.names, earlier: make(map[string]*content, len(list))}
	owners := make(map[string]*Limit) // of counters, by prefix
	for _, c := range list {
		for _, l := range t.limits[c.name] {
			owners[l.prefix] = l
		}
	}
	for _, c := range list {
		one := *c
		one.limits = make([]*Limit, len(c.compiled))
		for i, l := range c.compiled {
			if owners[l.prefix] == nil {
				owners[l.prefix] = l
			}
			one.limits[i] = l.under(owners[l.prefix])
		}
		next.earlier[c.ref] = &one
	}
	return next
}

// under is the limit as it decides once another one has its counters.
func (l *Limit) under(owner *Limit) *Limit {
	earlier := *l
	switch {
	case l.Rule.Algorithm() == limit.Concurrency || l.Rule.Window() == owner.Rule.Window():
	case l.Cost != nil: // what is held was put into those counters, and ends there
		earlier = *owner
	default:
		earlier.prefix += "~" + strconv.FormatInt(l.Rule.Window().Microseconds(), 10)
	}
	earlier.Earlier = true
	return &earlier
}
