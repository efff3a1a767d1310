package ca

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
)

// The bounds of what refusals may add to the ledger, so that nobody fills the disk
// by asking for what he does not get: at most 10 MB in a day, half of it from
// strangers.
const (
	// refusalBurst are written down one by one.
	refusalBurst = 100
	// refusalEvery is how long it takes until one more is.
	refusalEvery = 10 * time.Second
	// refusalSummary is how often there is an entry that counts the others.
	refusalSummary = time.Minute
	// maxReason bounds the text of a refusal, in bytes: the caller may have a say in
	// it.
	maxReason = 300
)

// refusals writes down what was refused, without keeping the refused waiting.
type refusals struct {
	store ledger.Store
	now   func() time.Time
	log   *slog.Logger
	// entries are to be written; one that finds no room is counted.
	entries chan ledger.Entry

	mu sync.Mutex
	// strangers and named have a bound each, so that the former cannot keep the
	// latter out of the ledger.
	strangers, named allowance
	// counted are those without an entry, by request and reason.
	counted map[string]int
}

// allowance is a token bucket.
type allowance struct {
	left  float64
	since time.Time
}

func newRefusals(store ledger.Store, now func() time.Time, log *slog.Logger) *refusals {
	full := allowance{left: refusalBurst, since: now()}
	return &refusals{
		store: store, now: now, log: log, entries: make(chan ledger.Entry, refusalBurst),
		strangers: full, named: full, counted: make(map[string]int),
	}
}

func (a *allowance) take(now time.Time) bool {
	if passed := now.Sub(a.since); passed > 0 {
		a.left = min(refusalBurst, a.left+passed.Seconds()/refusalEvery.Seconds())
	}
	a.since = now
	if a.left < 1 {
		return false
	}
	a.left--
	return true
}

// note takes down that a request was refused. That the authority could not do its
// work, or that a caller went away, is no refusal. r may be nil.
func (r *refusals) note(request, requester, subject string, err error) {
	why := reasonOf(err)
	switch why {
	case unavailable, gone, internal:
		return
	}
	if r == nil {
		return
	}
	text := err.Error()
	if e := new(refusal); errors.As(err, &e) {
		text = e.text
	}
	entry := ledger.Entry{
		Kind: ledger.Refused, Time: r.now().UTC(), Actor: requester, Request: request, Subject: subject,
		Detail: map[string]string{"reason": string(why), "text": strings.ToValidUTF8(text[:min(len(text), maxReason)], "")},
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	bound := &r.named
	if request == kindJoin || request == kindACME {
		bound = &r.strangers
	}
	if bound.take(entry.Time) {
		select {
		case r.entries <- entry:
			return
		default:
		}
	}
	r.counted[request+" "+string(why)]++
}

// count takes down a refusal without an entry of its own. r may be nil.
func (r *refusals) count(request, why string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counted[request+" "+why]++
}

// summary is the entry that stands for what was only counted since the last one.
func (r *refusals) summary() (e ledger.Entry, some bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.counted) == 0 {
		return e, false
	}
	e = ledger.Entry{Kind: ledger.Refused, Time: r.now().UTC(), Detail: make(map[string]string)}
	total := 0
	for what, n := range maps.All(r.counted) {
		e.Detail[what] = strconv.Itoa(n)
		total += n
	}
	e.Detail["count"] = strconv.Itoa(total)
	clear(r.counted)
	return e, true
}

// run writes the entries until ctx ends, and then those that there are.
func (r *refusals) run(ctx context.Context) error {
	tick := time.NewTicker(refusalSummary)
	defer tick.Stop()
	for {
		select {
		case e := <-r.entries:
			r.write(ctx, e)
		case <-tick.C:
			if e, some := r.summary(); some {
				r.write(ctx, e)
			}
		case <-ctx.Done():
			r.drain(context.WithoutCancel(ctx))
			return ctx.Err()
		}
	}
}

func (r *refusals) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for {
		select {
		case e := <-r.entries:
			r.write(ctx, e)
		default:
			if e, some := r.summary(); some {
				r.write(ctx, e)
			}
			return
		}
	}
}

func (r *refusals) write(ctx context.Context, e ledger.Entry) {
	if _, err := r.store.Commit(ctx, ledger.Change{Entry: e}); err != nil {
		r.log.WarnContext(ctx, "a refusal is not in the ledger", slog.String("request", e.Request), slog.String("requester", e.Actor), slog.Any("error", err))
	}
}
