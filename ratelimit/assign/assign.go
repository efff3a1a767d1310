// Package assign keeps the books of limits that proxies decide themselves, with no
// call for a request: Envoy's rate limit quota service (RLQS).
//
// A proxy is given a lump: so many requests, and no more until it has reported what
// became of them. In the store of counters a lump is a hold, which counts against
// the limit as if all of it were used; a report settles it by what was used and
// holds the next. Whatever a proxy passes is therefore counted before it passes, and
// no stretch of time as long as the window sees more than the limit. What is passed
// before a bucket has its first lump is counted after the fact.
//
// Lumps follow demand: a proxy gets what it was asked for in two intervals of
// reports and something for a burst, at most its part of what is left among those
// that are asked too. What is not used is given back, and what a proxy had that is
// gone counts as used.
//
// How Envoy behaves, as read in the source of 1.36 and 1.40 and proven by tests with
// both: it reports every five seconds whatever it is told, replaces a token bucket
// only by something else that is no bucket of tokens, lets it be if it is given it again,
// fills a new one to the brim, and never forgets a bucket of requests by itself.
//
// Source: https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/rate_limit_quota/v3/rlqs.proto
package assign

import (
	"context"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

const (
	// ReportEvery is how often Envoy reports.
	ReportEvery = 5 * time.Second
	// TTL is how long a proxy may use a lump without hearing more.
	TTL = 3 * ReportEvery
	// holdFor is how long the store holds a lump: until no proxy can use it any
	// more, its way there and a late report included.
	holdFor = 2 * TTL
	// MaxBuckets bounds what one proxy has.
	MaxBuckets = 10_000
	// idleReports is after how many reports of nothing a bucket is given up.
	idleReports = 6
	// retryMin and retryMax bound how soon a bucket that got nothing is tried again.
	retryMin, retryMax = time.Second, ReportEvery
	// retryPause is between two looks at what is to be tried again: buckets of which
	// each has its own time are looked at together.
	retryPause = 200 * time.Millisecond
)

// Store decides over all uses at once.
type Store interface {
	Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error
}

// Bucket is what a report names, and the limit that it meets.
type Bucket struct {
	ID   string // unique among the buckets of a proxy
	Key  string // of the counter
	Rule limit.Limit
}

// Answer is what a proxy is to do with a bucket from now on.
type Answer struct {
	ID string
	// Abandon: forget the bucket.
	Abandon bool
	// Lump is how many requests may pass; 0 refuses all.
	Lump uint32
	// Serial differs from that of the lump before, if there is one; the same serial
	// says that the lump that is there goes on.
	Serial uint32
	// Fresh says that the proxy was not told of this lump yet.
	Fresh bool
}

// Books are those of all proxies of this replica. They are safe for concurrent use.
type Books struct {
	store Store
	name  string // unique among the replicas that share the store, over restarts too

	mu      sync.Mutex
	proxies uint64         // opened so far
	asked   map[string]int // how many proxies were asked for a counter lately, by key
}

// New makes books. The name is unique among the replicas that share the store, and
// another after each start.
func New(store Store, name string) *Books {
	return &Books{store: store, name: name, asked: make(map[string]int)}
}

// Proxy is the books of one proxy, for as long as its stream lives. It is not safe
// for concurrent use.
type Proxy struct {
	books   *Books
	name    string
	buckets map[string]*book
	serial  uint64
}

// book is what a proxy has of one limit.
type book struct {
	Bucket
	// given is the lump it was given last, lump what it may still pass of it, and late
	// what it might pass of the lump before while the new one is under way.
	given, lump, late uint64
	// serial counts lumps, told is the last of which the proxy heard.
	serial, told uint32
	// fresh: the lump was given since the last report, so that what that refused tells
	// nothing of it. unasked: no report asked for it, so that the next one may have been
	// on its way already.
	fresh, unasked bool
	// untold is what was passed that the store could not be told of.
	untold uint64
	// holds are the names in the store that cover lump and late.
	holds []string
	// quiet counts reports of nothing.
	quiet int
	// demand is what the last report told of, peers how many proxies were asked for
	// the counter lately, this one among them.
	demand uint64
	peers  int
	// retry is when to try again for a bucket that got nothing.
	retry time.Time
}

// Open opens the books of a stream.
func (b *Books) Open() *Proxy {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.proxies++
	return &Proxy{books: b, name: b.name + "/" + strconv.FormatUint(b.proxies, 36), buckets: make(map[string]*book)}
}

// count notes whether a proxy was asked for a counter, and tells how many were.
func (b *Books) count(key string, before, now bool) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case now && !before:
		b.asked[key]++
	case before && !now:
		if b.asked[key]--; b.asked[key] <= 0 {
			delete(b.asked, key)
		}
	}
	return b.asked[key]
}

// Len is how many buckets the proxy has.
func (p *Proxy) Len() int { return len(p.buckets) }

// Report takes what a proxy passed and refused since its last report of the bucket,
// and says what it may do next. What it says that it passed beyond what it had counts
// too, up to the limit: some of it passed before it had anything.
func (p *Proxy) Report(ctx context.Context, now time.Time, b Bucket, passed, refused uint64) (Answer, error) {
	k := p.buckets[b.ID]
	switch {
	case k == nil && len(p.buckets) >= MaxBuckets:
		return Answer{ID: b.ID}, nil
	case k == nil:
		k = &book{Bucket: b}
	case k.Key != b.Key:
		// The limit was edited to one that is counted elsewhere.
		if err := p.drop(ctx, now, k); err != nil {
			return Answer{}, err
		}
		k = &book{Bucket: b, serial: k.serial}
	}
	k.Rule = b.Rule
	p.buckets[b.ID] = k
	if k.quiet = k.quiet + 1; passed+refused > 0 {
		k.quiet = 0
	}
	if k.quiet >= idleReports {
		// It may pass what it has until it hears of this, and never tells.
		return Answer{ID: b.ID, Abandon: true}, p.drop(ctx, now, k)
	}
	before := k.demand > 0
	k.demand = add(passed, refused)
	k.peers = p.books.count(k.Key, before, k.demand > 0)
	return p.next(ctx, now, k, passed, refused)
}

// next settles what was passed and finds the next lump.
func (p *Proxy) next(ctx context.Context, now time.Time, k *book, passed, refused uint64) (Answer, error) {
	passed = add(passed, k.untold)
	had := k.lump + k.late
	uses := p.settling(k, passed)
	if passed > had { // before it had anything
		uses = append(uses, limit.Use{Key: k.Key, Limit: k.Rule, Op: limit.Charge, Hits: min(passed-had, uint64(k.Rule.Requests()))})
	}
	// What it may still pass at most. One that refused has none, unless that was before
	// it had the lump.
	left, late := min(k.lump, had-min(passed, had)), uint64(0)
	switch {
	case k.unasked: // it may have reported before the lump came, and may use both
		late = had - min(passed, had) - left
	case refused > 0 && !k.fresh:
		left = 0
	}
	// What is left was held before and is held on, whatever the limit is now: it cannot
	// be taken from the proxy.
	var keep []string
	if left+late > 0 {
		keep = []string{p.holdName()}
		uses = append(uses, limit.Use{Key: k.Key, Limit: k.Rule, Op: limit.Charge, Hits: left + late, Hold: keep[0], HoldFor: holdFor})
	}
	uses = append(uses, limit.Use{Key: k.Key, Limit: k.Rule, HoldFor: holdFor, Observe: true})
	outcomes := make([]limit.Outcome, len(uses))
	if err := p.books.store.Decide(ctx, now, uses, outcomes); err != nil {
		// Nothing was settled. What it has goes on until the store is back or its time
		// is over.
		k.untold = passed
		return k.answer(), err
	}
	k.untold = 0
	after := outcomes[len(uses)-1]
	if len(k.holds) > 0 && passed > 0 && outcomes[0].Taken == 0 {
		if err := p.charge(ctx, now, k, min(passed, had)); err != nil {
			k.untold = min(passed, had)
			return k.answer(), err
		}
	}
	k.fresh, k.unasked = k.unasked, false
	k.holds, k.retry, k.lump, k.late = keep, time.Time{}, left, late
	want := k.want()
	if refused == 0 && left > 0 && left >= want/2 && left <= 2*want {
		return k.answer(), nil
	}
	part := max(uint64(after.Remaining)/uint64(max(k.peers, 1)), 1) //nolint:gosec // a small number
	err := p.more(ctx, now, k, min(want, part), 0)
	return k.answer(), err
}

// charge counts what no hold covers.
func (p *Proxy) charge(ctx context.Context, now time.Time, k *book, hits uint64) error {
	uses := []limit.Use{{Key: k.Key, Limit: k.Rule, Op: limit.Charge, Hits: hits}}
	return p.books.store.Decide(ctx, now, uses, make([]limit.Outcome, 1))
}

// more gives a bucket another lump of so many hits, or up to want of them if want is
// greater, and says when to try again if there is nothing.
func (p *Proxy) more(ctx context.Context, now time.Time, k *book, hits, want uint64) error {
	u := limit.Use{Key: k.Key, Limit: k.Rule, Hits: hits, Want: want, Hold: p.holdName(), HoldFor: holdFor, Observe: true}
	outcomes := make([]limit.Outcome, 1)
	if err := p.books.store.Decide(ctx, now, []limit.Use{u}, outcomes); err != nil {
		k.retry = now.Add(retryMax)
		return err
	}
	if got := outcomes[0].Taken; got > 0 {
		k.holds = append(k.holds, u.Hold)
		k.give(got, k.lump+k.late)
		k.retry = time.Time{}
		return nil
	}
	k.retry = now.Add(min(max(outcomes[0].RetryAfter, retryMin), retryMax))
	if k.lump == 0 && (k.given > 0 || k.serial == 0) {
		k.give(0, k.late)
	}
	return nil
}

// give replaces the lump; of the one before so much may pass until it comes.
func (k *book) give(lump, late uint64) {
	k.given, k.lump, k.late, k.fresh = lump, lump, late, true
	k.serial++
}

func (k *book) answer() Answer {
	a := Answer{ID: k.ID, Lump: uint32(min(k.given, math.MaxUint32)), Serial: k.serial, Fresh: k.told != k.serial} //nolint:gosec // bounded just before
	k.told = k.serial
	return a
}

// want is the lump that a bucket should have: what was asked of it in two
// intervals, and enough for a burst if anything was.
func (k *book) want() uint64 {
	n := uint64(k.Rule.Requests())
	var burst uint64
	switch {
	case k.demand > 0:
		burst = n / uint64(2*max(k.peers, 1)) //nolint:gosec // a small number
	case k.quiet < idleReports/2:
		burst = n / 16
	}
	return min(max(add(k.demand, k.demand), burst, 1), max(n, 1))
}

// settling gives the uses that end what is held. All that passed is counted in the
// place of the first hold.
func (p *Proxy) settling(k *book, passed uint64) []limit.Use {
	uses := make([]limit.Use, 0, len(k.holds)+3)
	for i, name := range k.holds {
		u := limit.Use{Key: k.Key, Limit: k.Rule, Op: limit.Settle, Hold: name}
		if i == 0 {
			u.Hits = min(passed, k.lump+k.late)
		}
		uses = append(uses, u)
	}
	return uses
}

// drop ends a book. All that the proxy has counts as used: it may go on using it.
func (p *Proxy) drop(ctx context.Context, now time.Time, k *book) error {
	delete(p.buckets, k.ID)
	p.books.count(k.Key, k.demand > 0, false)
	uses := p.settling(k, k.lump+k.late)
	if len(uses) == 0 {
		return nil
	}
	return p.books.store.Decide(ctx, now, uses, make([]limit.Outcome, len(uses)))
}

func (p *Proxy) holdName() string {
	p.serial++
	return p.name + "/" + strconv.FormatUint(p.serial, 36)
}

// Retry tries for buckets that got nothing, if it is time. The answers go to the
// proxy as they are; next is when to call again, zero if nothing waits.
func (p *Proxy) Retry(ctx context.Context, now time.Time) (answers []Answer, next time.Time, err error) {
	for _, k := range p.buckets {
		if k.retry.IsZero() {
			continue
		}
		if !now.Before(k.retry) {
			serial := k.serial
			if failed := p.more(ctx, now, k, 1, k.want()); failed != nil {
				err = failed
			}
			if k.serial != serial {
				k.unasked = true
				answers = append(answers, k.answer())
			}
		}
		if !k.retry.IsZero() && (next.IsZero() || k.retry.Before(next)) {
			next = k.retry
		}
	}
	if soonest := now.Add(retryPause); !next.IsZero() && next.Before(soonest) {
		next = soonest
	}
	return answers, next, err
}

// Close ends the books of a proxy that is gone, or whose stream is: what it has
// counts as used, since it may go on using it.
func (p *Proxy) Close(ctx context.Context, now time.Time) error {
	var first error
	for _, k := range p.buckets {
		if err := p.drop(ctx, now, k); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func add(a, b uint64) uint64 {
	if s := a + b; s >= a {
		return s
	}
	return ^uint64(0)
}
