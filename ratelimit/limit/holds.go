package limit

import (
	"cmp"
	"slices"
)

const (
	// maxHolds bounds the holds of one counter: a use that would be one more is over.
	maxHolds = 1 << 14
	// maxSorted is of how many holds a refusal tells exactly when enough of them
	// end; of more it tells when all of them have.
	maxSorted = 64
)

// holds are hits that are held under names, until they are settled or their time
// is over. Times are microseconds since the epoch. The zero value holds nothing.
type holds struct {
	by   map[string]hold
	sum  uint64 // of what counts
	next int64  // nothing changes by itself before
	last int64  // nothing counts after
	seen int64  // the newest time that was told
}

type hold struct {
	hits   uint64 // 0 once it does not count any more
	until  int64  // it counts
	length int64
	// keeps: it may be settled for its length again, without counting, so that
	// what its request took in the end is charged even if that comes late.
	keeps bool
}

// gone is when a hold is forgotten.
func (x hold) gone() int64 {
	if x.keeps {
		return x.until + x.length
	}
	return x.until
}

// run ends what is over at now. Looking at all of them is due at the first end
// that there was when it was done last, so about once in the time of a hold.
func (h *holds) run(now int64) {
	if len(h.by) == 0 {
		h.seen = now
		return
	}
	if now < h.seen { // the clock was set back: none counts for longer than its length
		h.next, h.last = now, now
		for name, x := range h.by {
			x.until = min(x.until, now+x.length)
			h.last = max(h.last, x.until)
			h.by[name] = x
		}
	}
	h.seen = now
	if now < h.next {
		return
	}
	h.next = 0
	for name, x := range h.by {
		if x.gone() <= now {
			h.sum -= x.hits
			delete(h.by, name)
			continue
		}
		at := x.until
		if x.until <= now {
			h.sum -= x.hits
			x.hits = 0
			h.by[name] = x
			at = x.gone()
		}
		if h.next == 0 || at < h.next {
			h.next = at
		}
	}
}

// put holds hits. A name that is there already stands for both.
func (h *holds) put(name string, now int64, x hold) {
	if h.by == nil {
		h.by = make(map[string]hold)
	}
	x.until = max(h.by[name].until, now+x.length)
	h.sum += x.hits
	x.hits += h.by[name].hits
	h.by[name] = x
	h.last = max(h.last, x.until)
	if h.next == 0 || x.until < h.next {
		h.next = x.until
	}
}

// end ends a hold and says whether it was there.
func (h *holds) end(name string) bool {
	x, ok := h.by[name]
	if ok {
		h.sum -= x.hits
		delete(h.by, name)
	}
	return ok
}

// reset is when nothing counts any more, at the latest, in microseconds from now.
func (h *holds) reset(now int64) int64 {
	if h.sum == 0 {
		return 0
	}
	return max(h.last-now, 0)
}

// retry is when the sum will have come down by excess, in microseconds from now.
func (h *holds) retry(now int64, excess uint64) int64 {
	if len(h.by) > maxSorted {
		return h.reset(now)
	}
	ends := make([]hold, 0, len(h.by))
	for _, x := range h.by {
		if x.hits > 0 {
			ends = append(ends, x)
		}
	}
	slices.SortFunc(ends, func(a, b hold) int { return cmp.Compare(a.until, b.until) })
	for _, x := range ends {
		if excess <= x.hits {
			return x.until - now
		}
		excess -= x.hits
	}
	return h.reset(now)
}
