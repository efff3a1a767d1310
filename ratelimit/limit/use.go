package limit

import "time"

// Op says what a use does.
type Op uint8

const (
	// Take takes the hits if they fit.
	Take Op = iota
	// Charge takes the hits whether they fit or not. It never refuses.
	Charge
	// Refund gives hits back, at most what is used. It never refuses.
	Refund
	// Settle ends the hold and charges the hits in its place. It does nothing if
	// there is no such hold: it was settled before, or its time was over for as
	// long again. It never refuses.
	Settle
	// Reset forgets the counter and its holds. It never refuses.
	Reset
)

// Mode says where a use is counted.
type Mode uint8

const (
	// Exact uses are counted in the store that all replicas share, each by itself.
	Exact Mode = iota
	// Leased uses are counted in shares that the replica took from the shared
	// store before.
	Leased
	// Local uses are counted by each replica for itself.
	Local
)

// Use is what one request asks of one limit.
type Use struct {
	// Key names the counter: policy, limit and the caller's values. Limits with
	// different algorithms have different keys, see Algorithm.Code.
	Key   string
	Limit Limit
	// Op is what is done; the zero value takes.
	Op Op
	// Mode is where it is counted; the zero value is Exact.
	Mode Mode
	// Earlier says that the limit is one that the key's limit was before an edit. It is
	// counted by itself: shares and loans in hand are those of the newest.
	Earlier bool
	// Observe makes the use count as far as it fits and never refuse the request.
	Observe bool
	// Hits is how much to take. 0 takes nothing and asks: every limit but a fixed
	// one answers whether one more would pass.
	Hits uint64
	// Want is how much to take, if it is there, for a use of which at least Hits fit:
	// at most a quarter of what is left, or 64 of a smaller rest.
	Want uint64
	// Hold is the name under which the hits are held, beside what is counted as
	// used, until they are settled or for HoldFor. Uses of a Concurrency limit are
	// always held, for the window of the limit; one without a name cannot be settled.
	// A limit that counts refused uses holds nothing.
	Hold    string
	HoldFor time.Duration
	// Share makes the use a part of the use before it in the same decision, whose key is
	// Of, by which all share one limit fairly: it is over if that one is, and if Key has
	// its share of the limit. Share is the weight; 0 is none. That one is of a Sliding
	// limit, this one of the Share of that limit.
	Share uint32
	Of    string
	// At is when what a Refund gives back was taken, by Outcome.At. The zero value
	// gives the newest uses back.
	At time.Time
}

// Bounded is Hits, at most 2^32: more than any limit admits.
func (u *Use) Bounded() uint64 { return min(u.Hits, maxHits) }

// HeldFor is for how long the hits are held, at least a millisecond, in
// microseconds; 0 if they are not.
func (u *Use) HeldFor() time.Duration {
	switch {
	case u.Limit.countsRefused:
		return 0
	case u.Limit.algorithm == Concurrency:
		return u.Limit.Window()
	case u.Hold == "":
		return 0
	}
	return min(max(u.HoldFor.Truncate(time.Microsecond), minWindow), maxWindow)
}

// Outcome is what became of one use.
type Outcome struct {
	// Over says that the use does not fit into its limit.
	Over bool
	// Remaining is what is left after this decision.
	Remaining uint32
	// RetryAfter is, for a use that is over, when the same use would pass if
	// nothing else came, at the latest; for a use greater than its limit it is the
	// window.
	RetryAfter time.Duration
	// Reset is when the whole limit is free again if nothing else comes.
	Reset time.Duration
	// Taken is how many hits were taken or held, or for a Refund given back.
	Taken uint64
	// At is when that was, by the clock that the limit is counted by.
	At time.Time
}

// Refused says whether a decision with these outcomes refuses the request: any
// use is over that is not only observed.
func Refused(uses []Use, outcomes []Outcome) bool {
	for i := range uses {
		if outcomes[i].Over && !uses[i].Observe {
			return true
		}
	}
	return false
}
