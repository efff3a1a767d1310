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
)

// debts are what was admitted without the shared store and is to be told to it.
type debts struct {
	mu  sync.Mutex
	all map[debt]limit.Use
}

// debt names what is owed for: a counter in one of its windows, and a hold.
type debt struct{ counter, hold string }

// add remembers what a decision took.
func (d *debts) add(uses []limit.Use, outcomes []limit.Outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range uses {
		u, hits := &uses[i], outcomes[i].Taken
		key := debt{u.Limit.CounterKey(u.Key, outcomes[i].At), u.Hold}
		switch u.Op {
		case limit.Take, limit.Charge:
			d.charge(key, u, hits)
		case limit.Settle:
			d.settle(key, u, hits)
		case limit.Refund:
			if owed, ok := d.all[key]; ok {
				owed.Hits -= min(owed.Hits, hits)
				d.all[key] = owed
			}
		case limit.Reset:
			delete(d.all, key)
			d.put(key, *u)
		}
	}
}

func (d *debts) charge(key debt, u *limit.Use, hits uint64) {
	if hits == 0 {
		return
	}
	owed, ok := d.all[key]
	if !ok {
		owed = limit.Use{Key: u.Key, Limit: u.Limit, Hold: u.Hold, HoldFor: u.HoldFor}
	}
	if owed.Op == limit.Take {
		owed.Op = limit.Charge
	}
	owed.Hits += hits
	d.put(key, owed)
}

// settle ends a hold: one that is owed becomes what it came to, one that the shared
// store knows of is ended there.
func (d *debts) settle(key debt, u *limit.Use, hits uint64) {
	if owed, ok := d.all[key]; !ok || owed.Op != limit.Charge {
		d.put(key, *u)
		return
	}
	delete(d.all, key)
	plain := *u
	plain.Hold, plain.HoldFor = "", 0
	if u.Limit.Algorithm() != limit.Concurrency {
		d.charge(debt{key.counter, ""}, &plain, hits)
	}
}

func (d *debts) put(key debt, u limit.Use) {
	if d.all == nil {
		d.all = make(map[debt]limit.Use)
	}
	if _, ok := d.all[key]; ok || len(d.all) < maxDebts {
		d.all[key] = u
	}
}

// take takes some debts out, of which what still counts at now by the counters of
// this process is to be paid.
func (d *debts) take(now time.Time, local Local) (uses []limit.Use) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, u := range d.all {
		if len(uses) == atOnce {
			break
		}
		delete(d.all, key)
		if u.Limit.CounterKey(u.Key, now) != key.counter {
			continue // its window is over
		}
		if u.Op == limit.Charge && u.Hold == "" {
			u.Hits = min(u.Hits, counts(&u, now, local))
		}
		if u.Hits > 0 || u.Op != limit.Charge {
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
		if u.Op == limit.Charge {
			d.charge(key, u, u.Hits)
		} else {
			d.put(key, *u)
		}
	}
}
