package limit

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Fairness between those who share a sliding limit. The counter of all keeps what each
// of them asked for lately, refused or not, and from that the level: how much of the
// limit one may use for each unit of his weight so that all of it is used (weighted
// max-min fairness; Bertsekas and Gallager, Data Networks, 1992, 6.5.2). Whoever wants
// less than the level gets all that he wants, and leaves the rest to the others. What
// passes does not move the level, only what is asked for does, so that it does not
// swing with the window.
const (
	// spare is the part of a limit that is kept for those who come or want more until
	// the level has followed them and what others used has left the window.
	spare = 16
	// maxTenants bounds those whose demand is known; further ones are taken for one.
	maxTenants = 512
	// others is the name of all those.
	others = ""
)

// Part says whether the use at i is a part of the use before it.
func Part(uses []Use, i int) bool {
	return i > 0 && uses[i].Share > 0 && uses[i].Of == uses[i-1].Key && uses[i].Op == Take && uses[i-1].Op == Take &&
		uses[i].Limit.algorithm == Sliding && uses[i-1].Limit.algorithm == Sliding
}

// Share is the limit by which the uses of one who shares l are counted: each for a
// step of the window longer, so that what he used never leaves his counter before it
// leaves that of all.
func (l Limit) Share() Limit {
	l.window += l.window / steps
	return l
}

// Whole is the use before a part of it.
type Whole struct {
	Use     *Use
	Counter *Counter
	// Outcome is what Check or After said about it.
	Outcome *Outcome
}

// CheckPart is Check of a use that is a part of the one before it.
func (c *Counter) CheckPart(u *Use, now time.Time, pending uint64, whole Whole) Outcome {
	whole.Counter.demands.ask(u, whole.Use.Limit, now.UnixMicro())
	part := *u
	part.Limit.requests = whole.Counter.demands.most(u)
	out := c.Check(&part, now, pending)
	if whole.Outcome.Over {
		out.Over, out.Taken, out.RetryAfter = true, 0, whole.Outcome.RetryAfter
	}
	return out
}

// AfterPart is After of a use that is a part of another one.
func (c *Counter) AfterPart(u *Use, now time.Time, out *Outcome, whole Whole) {
	part := *u
	part.Limit.requests = whole.Counter.demands.most(u)
	c.After(&part, now, out)
	out.Remaining = min(out.Remaining, whole.Outcome.Remaining)
}

// demands are what those who share a limit asked for in this window, aligned to the
// epoch, and the one before it. The zero value knows of nobody.
type demands struct {
	now, before map[string]demand
	window      int64 // which one now is of
	step        int64 // when the level was found
	level       float64
}

type demand struct{ hits, weight float64 }

// ask takes a use in, and finds the level if that is due.
func (d *demands) ask(u *Use, l Limit, at int64) {
	length := l.window
	window, step := floorDiv(at, length), floorDiv(at, length/steps)
	fresh := d.now == nil || window != d.window || step != d.step
	switch {
	case d.now == nil || window != d.window && window != d.window+1:
		d.now, d.before = make(map[string]demand), nil
	case window == d.window+1:
		d.now, d.before = make(map[string]demand), d.now
	}
	d.window, d.step = window, step
	if u.Hits > 0 {
		name := u.Key
		if _, known := d.now[name]; !known && len(d.now) >= maxTenants {
			name = others
		}
		d.now[name] = demand{min(d.now[name].hits+float64(u.Bounded()), maxCount), float64(u.Share)}
	}
	if fresh {
		d.find(l, float64(length-mod(at, length))/float64(length))
	}
}

// find finds the level; part of the window before still counts.
func (d *demands) find(l Limit, part float64) {
	all := make(map[string]demand, len(d.now)+len(d.before))
	for name, x := range d.before {
		all[name] = demand{math.Floor(x.hits * part), x.weight}
	}
	for name, x := range d.now {
		all[name] = demand{all[name].hits + x.hits, x.weight}
	}
	list := make([]demand, 0, len(all))
	weights := 0.0
	for _, x := range all {
		list, weights = append(list, x), weights+x.weight
	}
	slices.SortFunc(list, func(a, b demand) int { return cmp.Compare(a.hits/a.weight, b.hits/b.weight) })
	rest := float64(l.requests) - l.spare()
	most := 0.0
	for _, x := range list {
		if x.hits*weights > x.weight*rest {
			d.level = rest / weights
			return
		}
		rest, weights, most = rest-x.hits, weights-x.weight, x.hits/x.weight
	}
	// All get what they want; whoever wants more may have what is left.
	d.level = rest + most
}

// spare is what is kept for those who come.
func (l Limit) spare() float64 {
	if l.requests < 2 {
		return 0
	}
	return max(math.Floor(float64(l.requests)/spare), 1)
}

// most is how much of the limit the one who asks may use, at least one.
func (d *demands) most(u *Use) uint32 {
	return uint32(min(max(math.Floor(d.level*float64(u.Share)), 1), float64(u.Limit.requests)))
}

// floorDiv is the quotient that is rounded down, for times before the epoch.
func floorDiv(a, b int64) int64 { return (a - mod(a, b)) / b }
