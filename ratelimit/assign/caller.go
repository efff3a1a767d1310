package assign

import (
	"errors"
	"fmt"
	"strconv"
)

const (
	// MaxStreams bounds the streams that one caller has open: each of its proxies has
	// one, and for a moment another after a drain.
	MaxStreams = 1_000
	// maxCallerBuckets bounds the buckets of all of them together.
	maxCallerBuckets = 10 * MaxBuckets
)

// ErrStreams says that a caller has as many streams open as it may.
var ErrStreams = errors.New("too many streams of assigned quotas are open")

// caller is what one identity has, over all of its proxies.
type caller struct{ streams, buckets int }

// Open opens the books of a stream of a caller, by the name that the caller proved. It
// fails with ErrStreams.
func (b *Books) Open(name string) (*Proxy, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.callers[name]
	if c == nil {
		c = new(caller)
		b.callers[name] = c
	}
	if c.streams >= MaxStreams {
		return nil, fmt.Errorf("%w: %s has %d, and may have no more", ErrStreams, name, c.streams)
	}
	c.streams++
	b.proxies++
	return &Proxy{books: b, caller: name, name: b.name + "/" + strconv.FormatUint(b.proxies, 36), buckets: make(map[string]*book)}, nil
}

// closed forgets a stream that has no buckets any more.
func (b *Books) closed(p *Proxy) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.callers[p.caller]
	if c == nil || p.done {
		return
	}
	p.done = true
	if c.streams--; c.streams == 0 {
		delete(b.callers, p.caller)
	}
}

// enter says whether a proxy may have one more bucket, and counts it.
func (p *Proxy) enter() bool {
	p.books.mu.Lock()
	defer p.books.mu.Unlock()
	c := p.books.callers[p.caller]
	if c == nil || len(p.buckets) >= MaxBuckets || c.buckets >= maxCallerBuckets {
		return false
	}
	c.buckets++
	return true
}

// leave takes a bucket out.
func (p *Proxy) leave(k *book) {
	p.books.mu.Lock()
	defer p.books.mu.Unlock()
	delete(p.buckets, k.ID)
	if c := p.books.callers[p.caller]; c != nil {
		c.buckets--
	}
}
