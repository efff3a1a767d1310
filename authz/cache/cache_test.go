package cache

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func keyOf(n int) Key { return sha256.Sum256(binary.AppendVarint(nil, int64(n))) }

// sameShard gives keys that meet in one shard.
func sameShard(n int) []Key {
	var out []Key
	for i := 0; len(out) < n; i++ {
		if k := keyOf(i); k[0]%shards == 0 {
			out = append(out, k)
		}
	}
	return out
}

func keep(c *Cache[int], k Key, v int) {
	c.Fill(context.Background(), k, time.Time{}, func() Entry[int] { return Entry[int]{Value: v, Keep: true} })
}

func TestKeeps(t *testing.T) {
	c := New[int](1000, 1<<20, nil)
	now := time.Unix(1000, 0)
	if _, ok := c.Get(keyOf(1), now); ok {
		t.Fatal("an empty cache has a value")
	}
	calls := 0
	fill := func(n int, e Entry[int]) (int, Source) {
		return c.Fill(context.Background(), keyOf(n), now, func() Entry[int] { calls++; return e })
	}
	if v, from := fill(1, Entry[int]{Value: 7, Keep: true}); v != 7 || from != Computed {
		t.Errorf("%d, %d", v, from)
	}
	if v, from := fill(1, Entry[int]{Value: 8, Keep: true}); v != 7 || from != Kept || calls != 1 {
		t.Errorf("%d, %d after %d calls", v, from, calls)
	}
	if v, ok := c.Get(keyOf(1), now); !ok || v != 7 {
		t.Errorf("%d, %v", v, ok)
	}
	fill(2, Entry[int]{Value: 9})
	if _, ok := c.Get(keyOf(2), now); ok {
		t.Error("a value that is not to be kept was kept")
	}
	fill(3, Entry[int]{Value: 10, Bytes: 1 << 20, Keep: true})
	if _, ok := c.Get(keyOf(3), now); ok {
		t.Error("a value as large as the cache was kept")
	}
	if n, b := c.Size(); n != 1 || b != overhead {
		t.Errorf("%d entries, %d bytes", n, b)
	}
}

func TestExpires(t *testing.T) {
	c := New[int](1000, 1<<20, nil)
	now := time.Unix(1000, 0)
	c.Fill(context.Background(), keyOf(1), now, func() Entry[int] {
		return Entry[int]{Value: 1, Expires: now.Add(time.Second), Keep: true}
	})
	if _, ok := c.Get(keyOf(1), now.Add(time.Second-1)); !ok {
		t.Error("gone before its time")
	}
	if _, ok := c.Get(keyOf(1), now.Add(time.Second)); ok {
		t.Error("there when it has expired")
	}
	if n, b := c.Size(); n != 0 || b != 0 {
		t.Errorf("%d entries, %d bytes are left", n, b)
	}
}

func TestBounds(t *testing.T) {
	var evicted atomic.Int64
	c := New[int](64*shards, 64*shards*(overhead+100), func() { evicted.Add(1) })
	for i := range 10_000 {
		c.Fill(context.Background(), keyOf(i), time.Time{}, func() Entry[int] { return Entry[int]{Value: i, Bytes: 300 * (i % 2), Keep: true} })
		if n, b := c.Size(); n > 64*shards || b > 64*shards*(overhead+100) {
			t.Fatalf("%d entries, %d bytes", n, b)
		}
	}
	n, bytes := c.Size()
	if int(evicted.Load()) != 10_000-n {
		t.Errorf("%d evictions, %d entries left", evicted.Load(), n)
	}
	sum := 0
	for i := range c.shards {
		s := &c.shards[i]
		if len(s.entries) != s.order.Len() {
			t.Errorf("shard %d: %d in the map, %d in the list", i, len(s.entries), s.order.Len())
		}
		for e := s.order.Front(); e != nil; e = e.Next() {
			sum += of[int](e).bytes
		}
	}
	if sum != bytes {
		t.Errorf("%d bytes are counted, %d are there", bytes, sum)
	}
}

// What is asked for again stays, however many others come once.
func TestScanDoesNotEvict(t *testing.T) {
	c := New[int](8*shards, 1<<30, nil)
	keys := sameShard(200)
	keep(c, keys[0], 1)
	for _, k := range keys[1:] {
		if _, ok := c.Get(keys[0], time.Time{}); !ok {
			t.Fatal("evicted by what came once")
		}
		keep(c, k, 2)
	}
	if n, _ := c.Size(); n != 8 {
		t.Errorf("%d entries, want 8", n)
	}
}

func TestOff(t *testing.T) {
	c := New[int](0, 0, nil)
	keep(c, keyOf(1), 1)
	if _, ok := c.Get(keyOf(1), time.Time{}); ok {
		t.Error("a cache without room keeps")
	}
}

// Of many that miss at once one computes.
func TestSingleFlight(t *testing.T) {
	for name, kept := range map[string]bool{"kept": true, "not kept": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := New[int](1000, 1<<20, nil)
				release := make(chan struct{})
				var calls, shared atomic.Int64
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() {
						v, from := c.Fill(t.Context(), keyOf(1), time.Now(), func() Entry[int] {
							calls.Add(1)
							<-release
							return Entry[int]{Value: 5, Keep: kept}
						})
						if v != 5 {
							t.Errorf("value %d", v)
						}
						if from == Shared {
							shared.Add(1)
						}
					})
				}
				synctest.Wait()
				if calls.Load() != 1 {
					t.Errorf("%d compute at once, want 1", calls.Load())
				}
				close(release)
				wg.Wait()
				want := int64(9)
				if !kept {
					want = 0
				}
				if shared.Load() != want || calls.Load() != 10-want {
					t.Errorf("%d shared, %d computed", shared.Load(), calls.Load())
				}
			})
		})
	}
}

// One who cannot wait for another any more computes for himself.
func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New[int](1000, 1<<20, nil)
		release := make(chan struct{})
		go c.Fill(t.Context(), keyOf(1), time.Now(), func() Entry[int] { <-release; return Entry[int]{Value: 1} })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if v, from := c.Fill(ctx, keyOf(1), time.Now(), func() Entry[int] { return Entry[int]{Value: 2} }); v != 2 || from != Computed {
			t.Errorf("%d, %d", v, from)
		}
		close(release)
	})
}

// A panic leaves nobody waiting.
func TestPanic(t *testing.T) {
	c := New[int](1000, 1<<20, nil)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is lost")
			}
		}()
		c.Fill(t.Context(), keyOf(1), time.Time{}, func() Entry[int] { panic("x") })
	}()
	if v, _ := c.Fill(t.Context(), keyOf(1), time.Time{}, func() Entry[int] { return Entry[int]{Value: 3, Keep: true} }); v != 3 {
		t.Errorf("value %d", v)
	}
}

func BenchmarkGet(b *testing.B) {
	c := New[int](1<<16, 1<<26, nil)
	keep(c, keyOf(1), 1)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		c.Get(keyOf(1), now)
	}
}

// What is selected is what is kept, the newest of each part first, and what was asked for
// again is known by that; what is put there is found.
func TestSelect(t *testing.T) {
	c := New[int](1000, 1<<20, nil)
	keys := sameShard(4)
	for i, k := range keys[:3] {
		keep(c, k, i)
	}
	now := time.Unix(1000, 0)
	c.Get(keys[1], now)
	got := c.Select(func(v *int) bool { return *v > 0 })
	if len(got) != 2 || got[0].Value != 2 || got[0].Again || got[1].Value != 1 || !got[1].Again || got[1].Key != keys[1] {
		t.Errorf("selected %+v", got)
	}
	c.Put(keys[3], Entry[int]{Value: 9, Expires: now, Keep: true})
	c.Put(keys[0], Entry[int]{Value: 8, Keep: true})
	if v, ok := c.Get(keys[0], now); !ok || v != 8 {
		t.Errorf("%d, %v is kept where 8 was put", v, ok)
	}
	if _, ok := c.Get(keys[3], now); ok {
		t.Error("what was put does not expire")
	}
	if _, ok := c.Get(keys[2], now); !ok {
		t.Error("what is kept went")
	}
	c.Remove(keys[2])
	c.Remove(keys[2])
	if _, ok := c.Get(keys[2], now); ok {
		t.Error("what was removed is kept")
	}
}
