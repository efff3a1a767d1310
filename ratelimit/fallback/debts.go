package fallback

import (
	"sync"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

const (
	// maxDebts bounds the counters that something is owed for. Of more the shared
	// store is not told: the counters in this process know of them.
	maxDebts = 1 << 16
	// atOnce is how many debts are paid by one decision.
	atOnce = 32
	// maxTries is how often a debt is told that the store does not take, or not in time,
	// each time with others and then by itself.
	maxTries = 5
)

// debts are what was admitted without the shared store and is to be told to it.
type debts struct {
	mu  sync.Mutex
	all map[debt]owing
	// tried is how often the store did not take a debt.
	tried map[debt]int
}

// owing is what is owed: a use, or with reset that and before it to forget the counter.
type owing struct {
	limit.Use
	reset bool
	since time.Time
}

// over says that what is owed is of a past that nobody shall be told of any more: a
// hold whose time is over, or a reset of what has left its window by itself. The
// store may have been back all the time, but for one answer.
func (o *owing) over(now time.Time) bool {
	age := now.Sub(o.since)
	if o.Op == limit.Charge && o.Hold != "" {
		most := o.HeldFor()
		if o.Limit.Algorithm() != limit.Concurrency {
			most *= 2 // it may be settled for as long again
		}
		return age > most
	}
	return o.reset && age > o.Limit.Window()
}

// debt names what is owed for: a counter in one of its windows, and a hold.
type debt struct{ counter, hold string }

// add remembers what a decision took.
func (d *debts) add(uses []limit.Use, outcomes []limit.Outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for i := range uses {
		u, hits := &uses[i], outcomes[i].Taken
		key := debt{u.Limit.CounterKey(u.Key, outcomes[i].At), u.Hold}
		switch u.Op {
		case limit.Take, limit.Charge:
			d.charge(key, u, hits, now)
		case limit.Settle:
			if u.Hold != "" { // what has no name cannot be settled, and is owed with others
				d.settle(key, u, hits, now)
			}
		case limit.Refund:
			if owed, ok := d.all[key]; ok {
				owed.Hits -= min(owed.Hits, hits)
				d.all[key] = owed
			}
		case limit.Reset:
			d.put(key, owing{Use: limit.Use{Key: u.Key, Limit: u.Limit}, reset: true, since: now})
		}
	}
}

func (d *debts) charge(key debt, u *limit.Use, hits uint64, now time.Time) {
	if hits == 0 {
		return
	}
	owed, ok := d.all[key]
	if !ok {
		owed = owing{Use: limit.Use{Key: u.Key, Limit: u.Limit, Hold: u.Hold, HoldFor: u.HoldFor}, since: now}
	}
	if owed.Op == limit.Take {
		owed.Op = limit.Charge
	}
	owed.Hits += hits
	d.put(key, owed)
}

// settle ends a hold: one that is owed becomes what it came to, one that the shared
// store knows of is ended there.
func (d *debts) settle(key debt, u *limit.Use, hits uint64, now time.Time) {
	if owed, ok := d.all[key]; !ok || owed.Op != limit.Charge {
		d.put(key, owing{Use: *u, since: now})
		return
	}
	delete(d.all, key)
	plain := *u
	plain.Hold, plain.HoldFor = "", 0
	if u.Limit.Algorithm() != limit.Concurrency {
		d.charge(debt{key.counter, ""}, &plain, hits, now)
	}
}

func (d *debts) put(key debt, o owing) {
	if d.all == nil {
		d.all = make(map[debt]owing)
	}
	if _, ok := d.all[key]; ok || len(d.all) < maxDebts {
		d.all[key] = o
	}
}

// take takes some debts out, of which what still counts at now by the counters of
// this process is to be paid.
func (d *debts) take(now time.Time, local Local) (uses []limit.Use) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, o := range d.all {
		if len(uses) >= atOnce {
			break
		}
		delete(d.all, key)
		u := o.Use
		if u.Limit.CounterKey(u.Key, now) != key.counter {
			continue // its window is over
		}
		switch {
		case !o.over(now):
		case u.Hold != "":
			continue
		default:
			o.reset = false
		}
		if o.reset {
			uses = append(uses, limit.Use{Key: u.Key, Limit: u.Limit, Op: limit.Reset})
		}
		if u.Op == limit.Charge && u.Hold == "" {
			u.Hits = min(u.Hits, counts(&u, now, local))
		}
		if u.Hits > 0 || u.Op == limit.Settle {
			uses = append(uses, u)
		}
	}
	return uses
}

func (d *debts) len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.all)
}

// counts is what a counter of this process holds at now.
func counts(u *limit.Use, now time.Time, local Local) uint64 {
	uses, out := []limit.Use{{Key: u.Key, Limit: u.Limit, Observe: true}}, make([]limit.Outcome, 1)
	if u.Limit.CountsRefused() {
		return u.Hits
	}
	local.Peek(now, uses, out)
	return uint64(u.Limit.Burst()) - min(uint64(u.Limit.Burst()), uint64(out[0].Remaining))
}

// again takes debts back that could not be paid.
func (d *debts) again(uses []limit.Use) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for i := range uses {
		u := &uses[i]
		key := debt{u.Limit.CounterKey(u.Key, now), u.Hold}
		switch u.Op {
		case limit.Charge:
			d.charge(key, u, u.Hits, now)
		case limit.Reset:
			o, ok := d.all[key] // made after it
			if !ok {
				o = owing{Use: limit.Use{Key: u.Key, Limit: u.Limit}, since: now}
			}
			o.reset = true
			d.put(key, o)
		case limit.Take, limit.Settle, limit.Refund:
			d.put(key, owing{Use: *u, since: now})
		}
	}
}

// spoil takes debts back that the store did not take, as of a counter that somebody
// else has written over, or did not answer in time. After some tries nobody is told of
// them any more. None says that it took all.
func (d *debts) spoil(uses []limit.Use) {
	if len(uses) == 0 {
		d.mu.Lock()
		d.tried = nil
		d.mu.Unlock()
	}
	for i := range uses {
		key := debt{uses[i].Limit.CounterKey(uses[i].Key, time.Now()), uses[i].Hold}
		d.mu.Lock()
		tries := d.tried[key] + 1
		if tries < maxTries {
			if d.tried == nil || len(d.tried) >= maxDebts { // most are of windows that are over
				d.tried = make(map[debt]int)
			}
			d.tried[key] = tries
		} else {
			delete(d.tried, key)
		}
		d.mu.Unlock()
		if tries < maxTries {
			d.again(uses[i : i+1])
		}
	}
}
