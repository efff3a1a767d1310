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
// that are asked too. What is not used is given back. What a proxy had that is gone
// counts as used, and what a replica had given that is gone stays held until the last
// of it that can have passed has left its window.
//
// A report of many buckets is settled a few at a time, one request to the store each.
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
	"maps"
	"math"
	"slices"
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
	// late is how long a lump may be on its way, and a report of it.
	late = TTL
	// MaxBuckets bounds what one proxy has.
	MaxBuckets = 10_000
	// idleReports is after how many reports of nothing a bucket is given up.
	idleReports = 6
	// retryMin and retryMax bound how soon a bucket that got nothing is tried again.
	retryMin, retryMax = time.Second, ReportEvery
	// retryPause is between two looks at what is to be tried again: buckets of which
	// each has its own time are looked at together.
	retryPause = 200 * time.Millisecond
	// batch is of how many buckets the store is asked at once: enough that a report of
	// MaxBuckets is done well before the next one, and few enough that a decision, of
	// about four uses for each, takes a fraction of what the store is given time for.
	batch = 16
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

// Usage is what a proxy passed and refused since its last report of a bucket.
type Usage struct {
	Bucket

	Passed, Refused uint64
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
	proxies uint64             // opened so far
	asked   map[string]int     // how many proxies were asked for a counter lately, by key
	callers map[string]*caller // who has streams
}

// New makes books. The name is unique among the replicas that share the store, and
// another after each start.
func New(store Store, name string) *Books {
	return &Books{store: store, name: name, asked: make(map[string]int), callers: make(map[string]*caller)}
}

// Proxy is the books of one proxy, for as long as its stream lives. It is not safe
// for concurrent use.
type Proxy struct {
	books   *Books
	caller  string
	name    string
	buckets map[string]*book
	serial  uint64
	done    bool // it is closed
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

// Report takes what a proxy passed and refused since its last report of each bucket,
// and says what it may do next. What it says that it passed beyond what it had counts
// too, up to the limit: some of it passed before it had anything. With an error there
// are no answers for buckets of which nothing could be found out.
func (p *Proxy) Report(ctx context.Context, now time.Time, usages []Usage) (answers []Answer, err error) {
	answers = make([]Answer, 0, len(usages))
	named := make(map[string]bool, batch)
	for from := 0; from < len(usages); {
		to := from
		clear(named)
		for to < len(usages) && to-from < batch && !named[usages[to].ID] {
			named[usages[to].ID] = true // once more: after what is settled for it now
			to++
		}
		some, failed := p.report(ctx, now, usages[from:to])
		if answers = append(answers, some...); failed != nil {
			err = failed
		}
		from = to
	}
	return answers, err
}

// turn is a bucket that is reported, and what becomes of it.
type turn struct {
	*book

	passed, refused, had uint64
	// What it may still pass at most, under the names that keep that held.
	left, before uint64
	keep         []string
	// first and last are its uses: what ends its holds, and what asks how it stands.
	first, last int
}

// report does so for a few buckets, each of which is there once.
func (p *Proxy) report(ctx context.Context, now time.Time, usages []Usage) (answers []Answer, err error) {
	var uses []limit.Use
	turns := make([]turn, 0, len(usages))
	for _, u := range usages {
		k, rest := p.book(u.Bucket)
		uses = append(uses, rest...)
		if k == nil {
			answers = append(answers, Answer{ID: u.ID})
			continue
		}
		if k.quiet = k.quiet + 1; u.Passed+u.Refused > 0 {
			k.quiet = 0
		}
		if k.quiet >= idleReports {
			// It may pass what it has until it hears of this, and never tells.
			uses = append(uses, p.drop(k)...)
			answers = append(answers, Answer{ID: u.ID, Abandon: true})
			continue
		}
		before := k.demand > 0
		k.demand = add(u.Passed, u.Refused)
		k.peers = p.books.count(k.Key, before, k.demand > 0)
		t := turn{book: k, passed: add(u.Passed, k.untold), refused: u.Refused, first: len(uses)}
		uses = p.settle(&t, uses)
		turns = append(turns, t)
	}
	outcomes, err := p.decide(ctx, now, uses)
	if err != nil {
		// Nothing was settled. What they have goes on until the store is back or its time
		// is over.
		for _, t := range turns {
			t.untold = t.passed
			answers = p.goesOn(answers, t)
		}
		return answers, err
	}
	return p.next(ctx, now, turns, outcomes, answers)
}

// book finds or makes the books of a bucket, nil for one too many; rest ends what was
// held for it under another counter, if the limit was edited to one.
func (p *Proxy) book(b Bucket) (k *book, rest []limit.Use) {
	k = p.buckets[b.ID]
	switch {
	case k == nil && !p.enter():
		return nil, nil
	case k == nil:
		k = &book{Bucket: b}
	case k.Key != b.Key:
		rest = p.drop(k)
		if !p.enter() {
			return nil, rest
		}
		k = &book{Bucket: b, serial: k.serial}
	}
	k.Rule = b.Rule
	p.buckets[b.ID] = k
	return k, rest
}

// settle finds what a bucket has left and adds what settles the rest.
func (p *Proxy) settle(t *turn, uses []limit.Use) []limit.Use {
	k := t.book
	t.had = k.lump + k.late
	uses = p.settling(k, t.passed, uses)
	if t.passed > t.had { // before it had anything
		uses = append(uses, limit.Use{Key: k.Key, Limit: k.Rule, Op: limit.Charge, Hits: min(t.passed-t.had, uint64(k.Rule.Requests()))})
	}
	// One that refused has none left, unless that was before it had the lump.
	t.left = min(k.lump, t.had-min(t.passed, t.had))
	switch {
	case k.unasked: // it may have reported before the lump came, and may use both
		t.before = t.had - min(t.passed, t.had) - t.left
	case t.refused > 0 && !k.fresh:
		t.left = 0
	}
	// What is left was held before and is held on, whatever the limit is now: it cannot
	// be taken from the proxy.
	if t.left+t.before > 0 {
		t.keep = []string{p.holdName()}
		uses = append(uses, limit.Use{Key: k.Key, Limit: k.Rule, Op: limit.Charge, Hits: t.left + t.before, Hold: t.keep[0], HoldFor: holdFor(k.Rule)})
	}
	t.last = len(uses)
	return append(uses, limit.Use{Key: k.Key, Limit: k.Rule, HoldFor: holdFor(k.Rule), Observe: true})
}

// next takes in that what was passed is settled, and finds the next lumps.
func (p *Proxy) next(ctx context.Context, now time.Time, turns []turn, outcomes []limit.Outcome, answers []Answer) ([]Answer, error) {
	uncounted := p.chargeLost(ctx, now, turns, outcomes)
	var ask []*book
	var wants []limit.Use
	for _, t := range turns {
		k := t.book
		if k.untold = 0; uncounted != nil && t.lost(outcomes) {
			k.untold = min(t.passed, t.had)
			continue
		}
		k.fresh, k.unasked = k.unasked, false
		k.holds, k.retry, k.lump, k.late = t.keep, time.Time{}, t.left, t.before
		want := k.want()
		if t.refused == 0 && t.left > 0 && t.left >= want/2 && t.left <= 2*want {
			continue
		}
		part := max(uint64(outcomes[t.last].Remaining)/uint64(max(k.peers, 1)), 1) //nolint:gosec // a small number
		ask, wants = append(ask, k), append(wants, p.lump(k, min(want, part), 0))
	}
	err := p.more(ctx, now, ask, wants)
	if err == nil {
		err = uncounted
	}
	for _, t := range turns {
		if err == nil || t.serial > 0 {
			answers = append(answers, t.answer())
		}
	}
	return answers, err
}

// goesOn adds that a bucket goes on with what it has; one that has nothing yet goes on
// as its policy says.
func (p *Proxy) goesOn(answers []Answer, t turn) []Answer {
	if t.serial == 0 {
		return answers
	}
	return append(answers, t.answer())
}

// lost says that the store had forgotten what was held.
func (t *turn) lost(outcomes []limit.Outcome) bool {
	return len(t.holds) > 0 && t.passed > 0 && outcomes[t.first].Taken == 0
}

// chargeLost counts what no hold covered.
func (p *Proxy) chargeLost(ctx context.Context, now time.Time, turns []turn, outcomes []limit.Outcome) error {
	var uses []limit.Use
	for i := range turns {
		if t := &turns[i]; t.lost(outcomes) {
			uses = append(uses, limit.Use{Key: t.Key, Limit: t.Rule, Op: limit.Charge, Hits: min(t.passed, t.had)})
		}
	}
	_, err := p.decide(ctx, now, uses)
	return err
}

// decide asks the store, if there is something to ask.
func (p *Proxy) decide(ctx context.Context, now time.Time, uses []limit.Use) ([]limit.Outcome, error) {
	outcomes := make([]limit.Outcome, len(uses))
	if len(uses) == 0 {
		return outcomes, nil
	}
	return outcomes, p.books.store.Decide(ctx, now, uses, outcomes)
}

// lump asks for another lump of so many hits, or up to want of them if want is
// greater.
func (p *Proxy) lump(k *book, hits, want uint64) limit.Use {
	return limit.Use{Key: k.Key, Limit: k.Rule, Hits: hits, Want: want, Hold: p.holdName(), HoldFor: holdFor(k.Rule), Observe: true}
}

// more gives buckets the lumps that are asked for, and says when to try again where
// there is nothing.
func (p *Proxy) more(ctx context.Context, now time.Time, books []*book, uses []limit.Use) error {
	outcomes, err := p.decide(ctx, now, uses)
	for i, k := range books {
		switch got := outcomes[i].Taken; {
		case err != nil:
			k.retry = now.Add(retryMax)
		case got > 0:
			k.holds = append(k.holds, uses[i].Hold)
			k.give(got, k.lump+k.late)
			k.retry = time.Time{}
		default:
			k.retry = now.Add(min(max(outcomes[i].RetryAfter, retryMin), retryMax))
			if k.lump == 0 && (k.given > 0 || k.serial == 0) {
				k.give(0, k.late)
			}
		}
	}
	return err
}

// holdFor is how long the store holds a lump of which nobody hears any more: for a
// window from when the last of it can have passed.
func holdFor(rule limit.Limit) time.Duration { return rule.Window() + TTL + late }

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

// settling adds the uses that end what is held. All that passed is counted in the
// place of the first hold.
func (p *Proxy) settling(k *book, passed uint64, uses []limit.Use) []limit.Use {
	for i, name := range k.holds {
		u := limit.Use{Key: k.Key, Limit: k.Rule, Op: limit.Settle, Hold: name}
		if i == 0 {
			u.Hits = min(passed, k.lump+k.late)
		}
		uses = append(uses, u)
	}
	return uses
}

// drop ends a book, once the uses that it gives are decided. All that the proxy has
// counts as used: it may go on using it.
func (p *Proxy) drop(k *book) []limit.Use {
	p.leave(k)
	p.books.count(k.Key, k.demand > 0, false)
	return p.settling(k, k.lump+k.late, nil)
}

func (p *Proxy) holdName() string {
	p.serial++
	return p.name + "/" + strconv.FormatUint(p.serial, 36)
}

// Retry tries for buckets that got nothing, if it is time. The answers go to the
// proxy as they are; next is when to call again, zero if nothing waits.
func (p *Proxy) Retry(ctx context.Context, now time.Time) (answers []Answer, next time.Time, err error) {
	var due []*book
	for _, k := range p.buckets {
		if !k.retry.IsZero() && !now.Before(k.retry) {
			due = append(due, k)
		}
	}
	for some := range slices.Chunk(due, batch) {
		uses, serials := make([]limit.Use, len(some)), make([]uint32, len(some))
		for i, k := range some {
			uses[i], serials[i] = p.lump(k, 1, k.want()), k.serial
		}
		if failed := p.more(ctx, now, some, uses); failed != nil {
			err = failed
		}
		for i, k := range some {
			if k.serial != serials[i] {
				k.unasked = true
				answers = append(answers, k.answer())
			}
		}
	}
	for _, k := range p.buckets {
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
	for some := range slices.Chunk(slices.Collect(maps.Values(p.buckets)), batch) {
		var uses []limit.Use
		for _, k := range some {
			uses = append(uses, p.drop(k)...)
		}
		if _, err := p.decide(ctx, now, uses); err != nil && first == nil {
			first = err
		}
	}
	p.books.closed(p)
	return first
}

func add(a, b uint64) uint64 {
	if s := a + b; s >= a {
		return s
	}
	return ^uint64(0)
}
