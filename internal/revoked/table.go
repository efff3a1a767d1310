package revoked

import (
	"encoding/binary"
	"iter"
	"math"
	"sync"
	"time"
)

// Entry is one revocation.
type Entry struct {
	Key Key
	// Before bounds it to tokens that were issued before that time, in seconds since
	// 1970; 0: whenever they were issued. A token that does not say when it was issued
	// falls under it.
	Before uint32
	// Until is when the last token that it is about expires, in seconds since 1970;
	// 0: never.
	Until uint32
}

// Seconds is a time as entries have it; 0 for the zero time.
func Seconds(t time.Time) uint32 {
	if t.IsZero() {
		return 0
	}
	return uint32(max(1, min(t.Unix(), math.MaxUint32)))
}

// Time is what Seconds was made of.
func Time(seconds uint32) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0).UTC()
}

// grace is for how long an entry stays after its Until: verifiers grant leeway on
// exp, ten minutes at most (token.leeway of authz).
const grace = 10 * time.Minute

// expired tells whether no token that e is about can be accepted any more.
func (e Entry) expired(now time.Time) bool {
	return e.Until != 0 && now.After(Time(e.Until).Add(grace))
}

// Widen gives the revocation of everything that e or other is about. They have the
// same key.
func (e Entry) Widen(other Entry) Entry {
	return Entry{Key: e.Key, Before: wider(e.Before, other.Before), Until: wider(e.Until, other.Until)}
}

// wider is the later of two times of which 0 is the last of all.
func wider(a, b uint32) uint32 {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}

// shards is how many parts a Table has, which grow and are locked one by one.
const shards = 256

// Table is a set of revocations with at most one of each key. Its zero value is
// empty. It is safe for concurrent use.
type Table struct {
	shards [shards]shard
}

// shard is a hash table with open addressing and linear probing. The places in use
// are at most 4/5 of all.
type shard struct {
	mu    sync.RWMutex
	used  int
	slots []Entry
}

func (t *Table) shard(k Key) *shard { return &t.shards[k[0]] }

// Put adds a revocation, or puts it in place of the one with its key.
func (t *Table) Put(e Entry) {
	s := t.shard(e.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(e)
}

// Delete takes a revocation back and tells whether there was one.
func (t *Table) Delete(k Key) bool {
	s := t.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(k)
}

// Get gives the revocation with a key.
func (t *Table) Get(k Key) (Entry, bool) {
	s := t.shard(k)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if i, there := s.find(k); there {
		return s.slots[i], true
	}
	return Entry{}, false
}

// Len is the number of revocations.
func (t *Table) Len() (n int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		n += s.used
		s.mu.RUnlock()
	}
	return n
}

// All gives the revocations in no order. What changes meanwhile may be missed.
func (t *Table) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := range t.shards {
			for _, e := range t.shards[i].entries() {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// Expire takes out what can concern no token any more, and gives how many that was.
func (t *Table) Expire(now time.Time) (n int) {
	for i := range t.shards {
		s := &t.shards[i]
		for _, e := range s.entries() {
			if e.expired(now) {
				s.mu.Lock()
				// It may have been prolonged meanwhile.
				if at, there := s.find(e.Key); there && s.slots[at].expired(now) && s.remove(e.Key) {
					n++
				}
				s.mu.Unlock()
			}
		}
	}
	return n
}

func (s *shard) entries() []Entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Entry, 0, s.used)
	for _, e := range s.slots {
		if e.Key != (Key{}) {
			out = append(out, e)
		}
	}
	return out
}

// start is where the search for a key begins among n places.
func start(k Key, n int) int {
	return int(binary.LittleEndian.Uint64(k[8:]) % uint64(n)) //nolint:gosec // below n
}

// find gives the place of a key, or the free one where it would be.
func (s *shard) find(k Key) (int, bool) {
	if len(s.slots) == 0 {
		return 0, false
	}
	for i := start(k, len(s.slots)); ; i++ {
		if i == len(s.slots) {
			i = 0
		}
		switch s.slots[i].Key {
		case k:
			return i, true
		case Key{}:
			return i, false
		}
	}
}

func (s *shard) put(e Entry) {
	if i, there := s.find(e.Key); there {
		s.slots[i] = e
		return
	}
	if 5*(s.used+1) > 4*len(s.slots) {
		s.grow()
	}
	i, _ := s.find(e.Key)
	s.slots[i] = e
	s.used++
}

// grow by a half, so that at least 8/15 of the places of a large table are in use.
func (s *shard) grow() {
	old := s.slots
	s.slots = make([]Entry, max(8, len(old)+len(old)/2))
	for _, e := range old {
		if e.Key != (Key{}) {
			i, _ := s.find(e.Key)
			s.slots[i] = e
		}
	}
}

// remove frees a place and moves those behind it up whose search led over it.
func (s *shard) remove(k Key) bool {
	i, there := s.find(k)
	if !there {
		return false
	}
	n := len(s.slots)
	for j := (i + 1) % n; s.slots[j].Key != (Key{}); j = (j + 1) % n {
		// The one at j may move to i unless its search begins behind i.
		if begin := start(s.slots[j].Key, n); (j-begin+n)%n >= (j-i+n)%n {
			s.slots[i] = s.slots[j]
			i = j
		}
	}
	s.slots[i] = Entry{}
	s.used--
	return true
}
