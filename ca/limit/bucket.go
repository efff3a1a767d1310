package limit

import (
	"container/list"
	"time"
)

// maxWait bounds how long anybody is told to wait. Who waits longer than he has to
// finds his bucket fuller.
const maxWait = 10 * time.Second

// rate is how fast a bucket fills, in requests per second, and how many it holds.
type rate struct {
	perSecond float64
	burst     float64
}

// bucket is what one caller has left. It is guarded by Limiter.mu.
type bucket struct {
	key string
	// left is at most the burst, as of at.
	left float64
	at   time.Time
	// promised is when the last one who was told to wait may come back.
	promised time.Time
	// calls and streams are under way.
	calls, streams int
	// warned is when the log last spoke of this caller.
	warned time.Time
	// idle is the place in the table's list of those with nothing under way, nil
	// with something.
	idle *list.Element
}

// fill brings the bucket up to now. A clock that goes back gives nothing and takes
// nothing.
func (b *bucket) fill(r rate, now time.Time) {
	if passed := now.Sub(b.at); passed > 0 {
		b.left = min(r.burst, b.left+passed.Seconds()*r.perSecond)
	}
	b.at = now
}

// wait says when one more request is welcome, 0 for now. Those who are told to wait
// are given times one after the other, so that they do not come back together.
func (b *bucket) wait(r rate, now time.Time) time.Duration {
	if b.left >= 1 {
		return 0
	}
	next := now.Add(seconds((1 - b.left) / r.perSecond))
	if latest := now.Add(maxWait); b.promised.After(latest) {
		b.promised = latest // also after a clock went back
	}
	if after := b.promised.Add(seconds(1 / r.perSecond)); after.After(next) {
		next = after
	}
	b.promised = next
	return min(next.Sub(now), maxWait)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// table has the buckets of one kind of caller: all with something under way, and
// of the others those used last.
type table struct {
	rate    rate
	max     int
	buckets map[string]*bucket
	idle    *list.List // of *bucket, the one used last in front
}

func newTable(r rate, most int) *table {
	return &table{rate: r, max: most, buckets: make(map[string]*bucket), idle: list.New()}
}

// get gives a caller's bucket as of now. A new one is full; so is, in effect, one
// that was forgotten, unless more than max callers came since.
func (t *table) get(key string, now time.Time) *bucket {
	b := t.buckets[key]
	if b == nil {
		b = &bucket{key: key, left: t.rate.burst, at: now}
		t.buckets[key] = b
		b.idle = t.idle.PushFront(b)
		t.trim(b)
	} else if b.idle != nil {
		t.idle.MoveToFront(b.idle)
	}
	b.fill(t.rate, now)
	return b
}

// trim forgets those that were not used for longest, but never keep.
func (t *table) trim(keep *bucket) {
	for len(t.buckets) > t.max {
		last := t.idle.Back()
		if last == nil {
			return
		}
		b, ok := last.Value.(*bucket)
		if !ok || b == keep {
			return
		}
		t.idle.Remove(last)
		delete(t.buckets, b.key)
	}
}

// busy notes that something of b has begun or ended.
func (t *table) busy(b *bucket) {
	switch under := b.calls + b.streams; {
	case under > 0 && b.idle != nil:
		t.idle.Remove(b.idle)
		b.idle = nil
	case under == 0 && b.idle == nil:
		b.idle = t.idle.PushFront(b)
		t.trim(nil)
	}
}
