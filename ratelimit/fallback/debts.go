package fallback

import (
	"crypto/rand"
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
	// maxDoubts bounds what is remembered of answers that may still come, for one counter,
	// and doubtful the counters: what there is more of may count twice.
	maxDoubts = 64
	doubtful  = 256
)

// debts are what was admitted without the shared store and is to be told to it.
type debts struct {
	mu  sync.Mutex
	all map[debt]owing
}

// owing is what is owed for one counter: what is new, and before it what was told and may
// have been done, for nobody heard.
type owing struct {
	entry

	told  entry
	id    string // by which the store knows what it was told; empty if it was not
	tries int    // how often it was told in vain
	out   bool   // it is being told
}

// entry is a use, or with reset that and before it to forget the counter.
type entry struct {
	limit.Use
	reset  bool
	since  time.Time
	doubts []doubt
}

// late is an error of a Shared that had not answered in time and may have done so since:
// then it says what it did.
type late interface {
	Late() (outcomes []limit.Outcome, ok bool)
}

// doubt is about hits that are owed and may have been taken when the store was asked.
type doubt struct {
	answer late
	at     int // the use's place in what was asked
	hits   uint64
}

// clear takes out what the store is known to have taken by now.
func (e *entry) clear() {
	for _, d := range e.doubts {
		if out, ok := d.answer.Late(); ok && d.at < len(out) {
			e.Hits -= min(e.Hits, d.hits, out[d.at].Taken)
		}
	}
	e.doubts = nil
}

func (e *entry) empty() bool { return e.Op == limit.Take && !e.reset }

// over says that what is owed is of a past that nobody shall be told of any more: a
// hold whose time is over, or a reset of what has left its window by itself. The
// store may have been back all the time, but for one answer.
func (e *entry) over(now time.Time) bool {
	age := now.Sub(e.since)
	if e.Op == limit.Charge && e.Hold != "" {
		most := e.HeldFor()
		if e.Limit.Algorithm() != limit.Concurrency {
			most *= 2 // it may be settled for as long again
		}
		return age > most
	}
	return e.reset && age > e.Limit.Window()
}

// uses are what is told of an entry: what of it still counts at now by the counters of
// this process.
func (e *entry) uses(now time.Time, counter string, local Local) (uses []limit.Use) {
	u, reset := e.Use, e.reset
	if e.empty() || u.Limit.CounterKey(u.Key, now) != counter {
		return nil // its window is over
	}
	if e.over(now) {
		if u.Hold != "" {
			return nil
		}
		reset = false
	}
	if reset {
		uses = append(uses, limit.Use{Key: u.Key, Limit: u.Limit, Op: limit.Reset})
	}
	if u.Op == limit.Charge && u.Hold == "" {
		u.Hits = min(u.Hits, counts(&u, now, local))
	}
	if u.Op == limit.Settle || u.Op == limit.Charge && u.Hits > 0 {
		uses = append(uses, u)
	}
	return uses
}

// bill is what the store is told of one counter, by an id.
type bill struct {
	debt debt
	id   string
	uses []limit.Use
}

// debt names what is owed for: a counter in one of its windows, and a hold.
type debt struct{ counter, hold string }

// add remembers what a decision took.
func (d *debts) add(uses []limit.Use, outcomes []limit.Outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.remember(uses, outcomes)
}

// addAsked is add of one use of a decision that the store was asked for first, the one at
// that place; it may have done it.
func (d *debts) addAsked(u limit.Use, out limit.Outcome, answer late, at int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.remember([]limit.Use{u}, []limit.Outcome{out})
	key := debt{u.Limit.CounterKey(u.Key, out.At), u.Hold}
	owed, ok := d.all[key]
	plain := u.HeldFor() == 0 && (u.Op == limit.Take || u.Op == limit.Charge)
	if ok && plain && out.Taken > 0 && len(owed.doubts) < maxDoubts && len(d.all) <= doubtful {
		owed.doubts = append(owed.doubts, doubt{answer, at, out.Taken})
		d.all[key] = owed
	}
}

func (d *debts) remember(uses []limit.Use, outcomes []limit.Outcome) {
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
				given := min(owed.Hits, hits)
				owed.Hits -= given
				owed.told.Hits -= min(owed.told.Hits, hits-given) // if it was done already, that much is refused
				d.all[key] = owed
			}
		case limit.Reset:
			d.put(key, entry{Use: limit.Use{Key: u.Key, Limit: u.Limit}, reset: true, since: now})
		}
	}
}

func (d *debts) charge(key debt, u *limit.Use, hits uint64, now time.Time) {
	if hits == 0 {
		return
	}
	owed := d.all[key].entry
	if owed.empty() {
		owed = entry{Use: limit.Use{Key: u.Key, Limit: u.Limit, Hold: u.Hold, HoldFor: u.HoldFor}, since: now}
	}
	if owed.Op == limit.Take {
		owed.Op = limit.Charge
	}
	owed.Hits += hits
	d.put(key, owed)
}

// settle ends a hold: one that is owed becomes what it came to, one that the shared
// store knows of, or may know of, is ended there.
func (d *debts) settle(key debt, u *limit.Use, hits uint64, now time.Time) {
	owed := d.all[key]
	if owed.Op != limit.Charge {
		d.put(key, entry{Use: *u, since: now})
		return
	}
	owed.entry = entry{}
	d.keep(key, owed)
	plain := *u
	plain.Hold, plain.HoldFor = "", 0
	if u.Limit.Algorithm() != limit.Concurrency {
		d.charge(debt{key.counter, ""}, &plain, hits, now)
	}
}

// put makes an entry what is new of a debt.
func (d *debts) put(key debt, e entry) {
	if d.all == nil {
		d.all = make(map[debt]owing)
	}
	owed, ok := d.all[key]
	if ok || len(d.all) < maxDebts {
		owed.entry = e
		d.all[key] = owed
	}
}

// keep keeps a debt as long as something of it is owed.
func (d *debts) keep(key debt, o owing) {
	if o.empty() && o.told.empty() && !o.out {
		delete(d.all, key)
		return
	}
	d.all[key] = o
}

// take gives some of what is to be told that is not out already. Of each counter that is
// what was told before, as often as it takes, and only then what is new: so nothing is
// done twice, nor in another order.
func (d *debts) take(now time.Time, local Local) (bills []bill) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, o := range d.all {
		if len(bills) >= atOnce {
			break
		}
		if o.out {
			continue
		}
		if o.told.empty() {
			o.clear()
			o.told, o.entry, o.id, o.tries = o.entry, entry{}, rand.Text(), 0
		}
		uses := o.told.uses(now, key.counter, local)
		if len(uses) == 0 {
			o.told = entry{} // it does not count any more
			d.keep(key, o)
			continue
		}
		o.out = true
		d.all[key] = o
		bills = append(bills, bill{key, o.id, uses})
	}
	return bills
}

// paid ends what the store did.
func (d *debts) paid(bills []bill) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range bills {
		o := d.all[bills[i].debt]
		o.told, o.out = entry{}, false
		d.keep(bills[i].debt, o)
	}
}

// spoil takes back what the store did not do, or did not say that it did: a counter that
// somebody else has written over, an answer that was too late. After some tries nobody is
// told of it any more.
func (d *debts) spoil(bills []bill) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range bills {
		o := d.all[bills[i].debt]
		o.out = false
		if o.tries++; o.tries >= maxTries {
			o.told = entry{}
		}
		d.keep(bills[i].debt, o)
	}
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
