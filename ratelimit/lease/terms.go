package lease

import (
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

const (
	// part is how long a share is good for, as a part of the window (of the burst's
	// time, for GCRA). The shorter it is, the oftener shares are asked for; the longer,
	// the more of the limit is kept back.
	part = 16
	// minShare is what a share has to hold to be worth asking for.
	minShare = 16
	// firstUses are what it takes to guess at a demand.
	firstUses = 4
	// triesPerPause is how many uses of a limit that is over, of which there are many,
	// are refused before the store is asked again.
	triesPerPause = 64
	// minValid is the shortest time of a share: below it the way to the store takes a
	// good part of it.
	minValid = 10 * time.Millisecond
)

// Terms are how a limit is shared out.
type Terms struct {
	// Asked is the limit that shares are taken from.
	Asked limit.Limit
	// Valid is how long a share may be used.
	Valid time.Duration
}

// TermsOf says how a limit is shared out; ok is false if it is too small for that
// and every use has to be counted by itself.
//
// A share is counted as used when it is granted, at T, and used between T and T +
// Valid. What is counted has to count for as long as what is used of it: so a
// sliding limit is asked for with a window that is longer by Valid, a GCRA limit
// with a burst that is smaller by what its rate gives in Valid, and a share of a
// fixed window ends with the window. Then what passed in any window is never more
// than what is counted, and that never more than the limit: nothing passes beyond
// it. The price is what is kept back: the limit gives 1/17 less than it could.
func TermsOf(l limit.Limit) (t Terms, ok bool) {
	var err error
	switch l.Algorithm() {
	case limit.Sliding:
		t.Valid = l.Window() / part
		t.Asked, err = limit.New(limit.Sliding, l.Requests(), l.Window()+t.Valid)
		ok = l.Requests()/part >= minShare
	case limit.Fixed:
		t.Asked, t.Valid = l, l.Window()/part
		ok = l.Requests()/part >= minShare
	case limit.GCRA:
		kept := l.Burst()/part + 1
		if ok = l.Burst()/part >= minShare; !ok {
			return t, false
		}
		t.Valid = time.Duration(float64(l.Window()) / float64(l.Requests()) * float64(kept-1))
		t.Asked, err = limit.NewGCRA(l.Requests(), l.Window(), l.Burst()-kept)
	case limit.Concurrency:
		// Places come back one by one and at once: there is nothing to take in advance.
	}
	return t, ok && err == nil && t.Valid >= minValid
}

// end is until when a share that is asked for at now may be used.
func (t Terms) end(now time.Time) time.Time {
	end := now.Add(t.Valid)
	if t.Asked.Algorithm() == limit.Fixed {
		if next := now.Add(t.Asked.UntilNext(now)); next.Before(end) {
			return next
		}
	}
	return end
}
