package limit

import (
	"cmp"
	"container/heap"
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
	by   map[string]*hold
	due  queue // what changes by itself, the next one first
	sum  uint64
	last int64 // nothing counts after
	seen int64 // the newest time that was told
}

type hold struct {
	name   string
	hits   uint64 // 0 once it does not count any more
	until  int64  // it counts
	length int64
	// keeps: it may be settled for its length again, without counting, so that
	// what its request took in the end is charged even if that comes late.
	keeps bool
	at    int // its place in the queue
}

// next is when it stops to count, or is forgotten if it does not count any more.
func (x *hold) next() int64 {
	if x.hits == 0 {
		return x.gone()
	}
	return x.until
}

// gone is when a hold is forgotten.
func (x *hold) gone() int64 {
	if x.keeps {
		return x.until + x.length
	}
	return x.until
}

// queue is a heap (package container/heap) by next.
type queue []*hold

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].next() < q[j].next() }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	h := x.(*hold) //nolint:forcetypeassert // nothing else is put into it
	h.at = len(*q)
	*q = append(*q, h)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := len(*q) - 1
	h := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return h
}

// run ends what is over at now.
func (h *holds) run(now int64) {
	if now < h.seen { // the clock was set back: none counts for longer than its length
		h.last = now
		for _, x := range h.by {
			x.until = min(x.until, now+x.length)
			h.last = max(h.last, x.until)
		}
		heap.Init(&h.due)
	}
	h.seen = now
	for len(h.due) > 0 && h.due[0].next() <= now {
		x := h.due[0]
		h.sum -= x.hits
		x.hits = 0
		if x.gone() > now {
			heap.Fix(&h.due, 0)
			continue
		}
		heap.Pop(&h.due)
		delete(h.by, x.name)
	}
}

// put holds hits. A name that is there already stands for both.
func (h *holds) put(name string, now int64, x hold) {
	if h.by == nil {
		h.by = make(map[string]*hold)
	}
	h.sum += x.hits
	x.name, x.until = name, now+x.length
	was, ok := h.by[name]
	if ok {
		x.until, x.hits, x.at = max(was.until, x.until), was.hits+x.hits, was.at
		*was = x
		heap.Fix(&h.due, was.at)
	} else {
		h.by[name] = &x
		heap.Push(&h.due, &x)
	}
	h.last = max(h.last, x.until)
}

// end ends a hold and says whether it was there.
func (h *holds) end(name string) bool {
	x, ok := h.by[name]
	if ok {
		h.sum -= x.hits
		heap.Remove(&h.due, x.at)
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
	ends := make([]*hold, 0, len(h.by))
	for _, x := range h.by {
		if x.hits > 0 {
			ends = append(ends, x)
		}
	}
	slices.SortFunc(ends, func(a, b *hold) int { return cmp.Compare(a.until, b.until) })
	for _, x := range ends {
		if excess <= x.hits {
			return x.until - now
		}
		excess -= x.hits
	}
	return h.reset(now)
}
