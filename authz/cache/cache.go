// Package cache keeps decisions for inputs that come again.
//
// The main entry points are [New], [Cache.Get] and [Cache.Fill]. A cache has a bound
// on entries and one on bytes. What goes first is what has not been asked for since it
// was last looked at (SIEVE, https://www.usenix.org/conference/nsdi24/presentation/zhang-yazhuo):
// inputs that come once, however many, do not push out those that come again. Of
// callers that miss the same key at once one computes and the others wait for it.
//
// It knows nothing of policies: a key has to stand for everything that a value
// depends on. What is removed only makes room. It does no I/O and starts no goroutine.
package cache

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// shards keep callers on many processors from waiting for each other.
const shards = 16

// overhead is what an entry costs beside its value, in bytes, measured: the map's
// share, the list's element, the entry with its key.
const overhead = 256

// Key is a cryptographic hash of what a value depends on.
type Key = [32]byte

// Entry is what was computed.
type Entry[V any] struct {
	Value V
	// Bytes is what the value holds in memory, about.
	Bytes int
	// Expires is when the value may not be used any more; zero for never.
	Expires time.Time
	// Keep says that the value may be given to other callers.
	Keep bool
}

// Item is what a cache holds for a key.
type Item[V any] struct {
	Key     Key
	Value   V
	Expires time.Time
	// Again says that it was asked for since it was last looked at.
	Again bool
}

// Source is where a value came from.
type Source int

// The sources of a value.
const (
	// Computed by this caller.
	Computed Source = iota
	// Shared with a caller that computed it at the same time.
	Shared
	// Kept since an earlier call.
	Kept
)

// Cache is a bounded cache. It is safe for concurrent use.
type Cache[V any] struct {
	shards  [shards]shard[V]
	evicted func()
}

type shard[V any] struct {
	mu       sync.Mutex
	entries  map[Key]*list.Element
	order    list.List // of *kept[V], the newest in front
	hand     *list.Element
	calls    map[Key]*call[V]
	bytes    int
	maxBytes int
	max      int
}

type kept[V any] struct {
	key     Key
	value   V
	bytes   int
	expires time.Time
	visited bool
}

// call is a computation under way. entry is set before done is closed.
type call[V any] struct {
	done  chan struct{}
	entry Entry[V]
}

// New makes a cache of at most so many entries and bytes altogether. evicted, which
// may be nil, is called for each entry that has to go for want of room.
func New[V any](entries, bytes int, evicted func()) *Cache[V] {
	if evicted == nil {
		evicted = func() {}
	}
	c := &Cache[V]{evicted: evicted}
	for i := range c.shards {
		s := &c.shards[i]
		s.entries, s.calls = make(map[Key]*list.Element), make(map[Key]*call[V])
		s.max, s.maxBytes = entries/shards, bytes/shards
	}
	return c
}

// shard takes any part of the key: it is a hash.
func (c *Cache[V]) shard(k Key) *shard[V] { return &c.shards[k[0]%shards] }

// Get gives a value that is kept and has not expired.
func (c *Cache[V]) Get(k Key, now time.Time) (V, bool) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(k, now)
}

func (s *shard[V]) get(k Key, now time.Time) (v V, ok bool) {
	e := s.entries[k]
	if e == nil {
		return v, false
	}
	x := of[V](e)
	if !x.expires.IsZero() && !now.Before(x.expires) {
		s.remove(e)
		return v, false
	}
	x.visited = true
	return x.value, true
}

func of[V any](e *list.Element) *kept[V] {
	x, _ := e.Value.(*kept[V])
	return x
}

// Fill computes a value that Get did not find, or waits for one who does already, as
// long as ctx lasts. A value that another caller computed and that is not to be kept,
// an error among them, is computed again. now is the time of the call.
func (c *Cache[V]) Fill(ctx context.Context, k Key, now time.Time, compute func() Entry[V]) (V, Source) {
	s := c.shard(k)
	s.mu.Lock()
	if v, ok := s.get(k, now); ok {
		s.mu.Unlock()
		return v, Kept
	}
	if other := s.calls[k]; other != nil {
		s.mu.Unlock()
		select {
		case <-other.done:
			if e := other.entry; e.Keep && (e.Expires.IsZero() || now.Before(e.Expires)) {
				return e.Value, Shared
			}
		case <-ctx.Done():
		}
		return compute().Value, Computed
	}
	mine := &call[V]{done: make(chan struct{})}
	s.calls[k] = mine
	s.mu.Unlock()
	defer func() { // should compute panic, too
		s.mu.Lock()
		delete(s.calls, k)
		evicted := 0
		if mine.entry.Keep {
			evicted = s.put(k, mine.entry)
		}
		s.mu.Unlock()
		close(mine.done)
		for range evicted {
			c.evicted()
		}
	}()
	mine.entry = compute()
	return mine.entry.Value, Computed
}

// Put keeps an entry in place of what is kept for the key.
func (c *Cache[V]) Put(k Key, e Entry[V]) {
	s := c.shard(k)
	s.mu.Lock()
	evicted := s.put(k, e)
	s.mu.Unlock()
	for range evicted {
		c.evicted()
	}
}

// Remove lets go of what is kept for the key.
func (c *Cache[V]) Remove(k Key) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[k]; e != nil {
		s.remove(e)
	}
}

// Select gives what is kept and wanted, in each part of the cache the newest first. It
// holds up who asks, a part at a time, so that wanted has to be quick.
func (c *Cache[V]) Select(wanted func(*V) bool) []Item[V] {
	var out []Item[V]
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for e := s.order.Front(); e != nil; e = e.Next() {
			if x := of[V](e); wanted(&x.value) {
				out = append(out, Item[V]{Key: x.key, Value: x.value, Expires: x.expires, Again: x.visited})
			}
		}
		s.mu.Unlock()
	}
	return out
}

// put keeps an entry and gives how many had to go for it. One that would take more
// than an eighth of the room is not kept.
func (s *shard[V]) put(k Key, e Entry[V]) (evicted int) {
	size := e.Bytes + overhead
	if size > s.maxBytes/8 || s.max == 0 {
		return 0
	}
	if old := s.entries[k]; old != nil {
		s.remove(old)
	}
	for s.order.Len() >= s.max || s.bytes+size > s.maxBytes {
		s.evict()
		evicted++
	}
	s.entries[k] = s.order.PushFront(&kept[V]{key: k, value: e.Value, bytes: size, expires: e.Expires})
	s.bytes += size
	return evicted
}

// evict goes on from where it stopped, from old to new, and takes the first entry
// that nobody has asked for since it was passed.
func (s *shard[V]) evict() {
	e := s.hand
	if e == nil {
		e = s.order.Back()
	}
	for x := of[V](e); x.visited; x = of[V](e) {
		x.visited = false
		if e = e.Prev(); e == nil {
			e = s.order.Back()
		}
	}
	s.hand = e.Prev()
	s.remove(e)
}

func (s *shard[V]) remove(e *list.Element) {
	if s.hand == e {
		s.hand = e.Prev()
	}
	x := of[V](e)
	delete(s.entries, x.key)
	s.bytes -= x.bytes
	s.order.Remove(e)
}

// Size gives the entries and their bytes.
func (c *Cache[V]) Size() (entries, bytes int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		entries += s.order.Len()
		bytes += s.bytes
		s.mu.Unlock()
	}
	return entries, bytes
}
