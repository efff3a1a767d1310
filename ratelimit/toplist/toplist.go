// Package toplist finds the callers that ask most of each limit, in little memory
// however many callers there are.
//
// Each limit has two lists of the space-saving kind (Metwally, Agrawal and El Abbadi,
// "Efficient computation of frequent and top-k elements in data streams", 2005): one
// of the stretch of time that runs and one of that before it. A list holds a fixed
// number of callers; a new one takes the place of the one with the least hits and
// inherits its count as an uncertainty. So a count is never too low, it is too high by
// at most hits/entries, and whoever has more than that is on the list for sure.
package toplist

import (
	"cmp"
	"container/heap"
	"slices"
	"sync"
	"time"
)

const (
	// entries of a list. One takes some 200 bytes with a key of 100.
	entries = 512
	// maxLimits bounds the limits that have lists, and with them the memory at some
	// 80 MB in the worst case. Limits beyond it have none.
	maxLimits = 400
	// stretch is how long a list runs. What is told covers one to two of them.
	stretch = 5 * time.Minute
)

// Lists are the lists of all limits. The zero value is ready. They are safe for
// concurrent use.
type Lists struct {
	mu     sync.RWMutex
	limits map[string]*pair
}

// pair is the lists of one limit.
type pair struct {
	mu      sync.Mutex
	began   time.Time
	current *list
	before  *list
}

// Caller is one of those that asked most of a limit.
type Caller struct {
	// Limit and Name are as they were added.
	Limit, Name string
	// Hits were asked for, Refused of them refused. Hits may be too high by
	// Uncertain.
	Hits, Refused, Uncertain uint64
}

// Namer gives what a caller is called whose counter is key.
type Namer interface{ Name(key string) string }

// Add counts hits of the caller whose counter is key. names is asked once, when the
// caller gets onto the list.
func (l *Lists) Add(now time.Time, limit, key string, hits uint64, refused bool, names Namer) {
	p := l.of(limit)
	if p == nil || hits == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turn(now)
	p.current.add(key, hits, refused, names)
}

// of finds the lists of a limit, nil if there are too many.
func (l *Lists) of(limit string) *pair {
	l.mu.RLock()
	p := l.limits[limit]
	full := len(l.limits) >= maxLimits
	l.mu.RUnlock()
	if p != nil || full {
		return p
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p = l.limits[limit]; p == nil && len(l.limits) < maxLimits {
		if l.limits == nil {
			l.limits = make(map[string]*pair)
		}
		p = &pair{}
		l.limits[limit] = p
	}
	return p
}

// Keep forgets the limits that are not in ids.
func (l *Lists) Keep(ids map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.limits {
		if !ids[id] {
			delete(l.limits, id)
		}
	}
}

// Top gives the callers that asked most of each limit that want is true for, at most n
// for each, by limit and then the most first.
func (l *Lists) Top(now time.Time, n int, want func(limit string) bool) []Caller {
	l.mu.RLock()
	pairs := make(map[string]*pair, len(l.limits))
	var ids []string
	for id, p := range l.limits {
		if want(id) {
			pairs[id], ids = p, append(ids, id)
		}
	}
	l.mu.RUnlock()
	slices.Sort(ids)
	var out []Caller
	for _, id := range ids {
		out = append(out, pairs[id].top(now, id, n)...)
	}
	return out
}

// turn begins a new list if the current one has run its time.
func (p *pair) turn(now time.Time) {
	switch age := now.Sub(p.began); {
	case p.current == nil || age >= 2*stretch:
		p.began, p.current, p.before = now, newList(), nil
	case age >= stretch:
		p.began, p.before, p.current = p.began.Add(stretch), p.current, newList()
	}
}

func (p *pair) top(now time.Time, limit string, n int) []Caller {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turn(now)
	all := make(map[string]*Caller, len(p.current.byKey))
	for _, l := range []*list{p.before, p.current} {
		if l == nil {
			continue
		}
		for _, e := range l.heap {
			c := all[e.key]
			if c == nil {
				c = &Caller{Limit: limit, Name: e.name}
				all[e.key] = c
			}
			c.Hits, c.Refused, c.Uncertain = c.Hits+e.hits, c.Refused+e.refused, c.Uncertain+e.uncertain
		}
	}
	out := make([]Caller, 0, len(all))
	for _, c := range all {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b Caller) int {
		return cmp.Or(cmp.Compare(b.Hits, a.Hits), cmp.Compare(a.Name, b.Name))
	})
	return out[:min(n, len(out))]
}

// list is one list, a heap with the least hits first.
type list struct {
	byKey map[string]*entry
	heap  byHits
}

type entry struct {
	key, name                string
	hits, refused, uncertain uint64
	at                       int // place in the heap
}

func newList() *list { return &list{byKey: make(map[string]*entry)} }

func (l *list) add(key string, hits uint64, refused bool, names Namer) {
	e := l.byKey[key]
	switch {
	case e != nil:
	case len(l.heap) < entries:
		e = &entry{key: key, name: names.Name(key)}
		l.byKey[key] = e
		heap.Push(&l.heap, e)
	default:
		e = l.heap[0]
		delete(l.byKey, e.key)
		e.key, e.name, e.uncertain, e.refused = key, names.Name(key), e.hits, 0
		l.byKey[key] = e
	}
	e.hits += hits
	if refused {
		e.refused += hits
	}
	heap.Fix(&l.heap, e.at)
}

type byHits []*entry

func (h byHits) Len() int           { return len(h) }
func (h byHits) Less(i, j int) bool { return h[i].hits < h[j].hits }

func (h byHits) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *byHits) Push(x any) {
	e := x.(*entry) //nolint:forcetypeassert // nothing else is pushed
	e.at = len(*h)
	*h = append(*h, e)
}

// Pop implements heap.Interface; nothing is popped.
func (h *byHits) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}
