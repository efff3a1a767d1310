package regions

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
)

// world is some regions that keep one limit together.
type world struct {
	t      *testing.T
	rule   limit.Limit
	shares map[string]int
	all    map[string]*region
	delay  func() time.Duration // of each way between regions
	slept  atomic.Int64         // how long all machines slept: no timer went on
	began  time.Time

	mu     sync.Mutex // of all and passed
	passed []time.Time
}

// at is a region as it runs now.
func (w *world) at(name string) *region {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all[name]
}

// region is one of them. Its store outlives it, as Redis does.
type region struct {
	*Store

	lender *Lender
	below  *memory.Store
	skew   *atomic.Int64 // of its store's clock
	set    *atomic.Int64 // how much the clock of its ratelimit is wrong
	cut    atomic.Bool   // nobody hears of it, and it hears of nobody
	stop   func()
}

func newWorld(t *testing.T, rule limit.Limit, shares map[string]int) *world {
	return &world{t: t, rule: rule, shares: shares, all: map[string]*region{}, delay: func() time.Duration { return time.Millisecond }, began: time.Now()}
}

// now is the true time.
func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.slept.Load())) }

// skewed is a store with a clock of its own.
type skewed struct {
	to   Decider
	now  func() time.Time
	skew *atomic.Int64
}

func (s skewed) Decide(ctx context.Context, _ time.Time, uses []limit.Use, out []limit.Outcome) error {
	return s.to.Decide(ctx, s.now().Add(time.Duration(s.skew.Load())), uses, out)
}

// start starts a region, or starts it anew.
func (w *world) start(name string, percent int, skew time.Duration) *region {
	w.t.Helper()
	division, err := NewDivision(name, w.shares)
	if err != nil {
		w.t.Fatal(err)
	}
	r := &region{below: memory.New(0), skew: new(atomic.Int64), set: new(atomic.Int64)}
	if old := w.at(name); old != nil {
		r.below, r.skew, r.set = old.below, old.skew, old.set
	}
	r.skew.Store(int64(skew))
	var peers []Peer
	known := map[spiffeid.ID][]Peer{}
	for other := range w.shares {
		if other != name {
			peers = append(peers, Peer{Name: other})
			known[idOf(other)] = []Peer{{Name: other}}
		}
	}
	slices.SortFunc(peers, func(a, b Peer) int { return len(a.Name) - len(b.Name) })
	store := skewed{r.below, w.now, r.skew}
	r.Store = New(Options{
		Below: store, Division: division, NameOf: func(key string) (string, bool) { return key, key != "nameless" }, MaxKeys: 1000,
		Now: func() time.Time { return w.now().Add(time.Duration(r.set.Load())) }, Up: func() time.Duration { return w.now().Sub(w.began) }, Peers: peers,
	}, prometheus.NewRegistry())
	r.lender = &Lender{
		Store: store, Division: division, Percent: percent, Now: w.now, Peers: known, Borrower: r.Store, Log: slog.New(slog.DiscardHandler),
		Find: func(name string) (limit.Use, error) {
			if name == "unknown" {
				return limit.Use{}, errors.New("unknown")
			}
			return limit.Use{Key: name, Limit: w.rule}, nil
		},
		Counted: func(part limit.Limit, _ limit.Mode) limit.Limit { return part },
	}
	w.mu.Lock()
	w.all[name] = r
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(w.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.Run(ctx) })
	for _, p := range peers {
		wg.Go(func() { _ = r.Connect(ctx, p.Name, link{w, name, p.Name}, slog.New(slog.DiscardHandler)) })
	}
	r.stop = func() { cancel(); wg.Wait() }
	return r
}

// kill ends a region without a chance to give anything back.
func (w *world) kill(name string) {
	w.at(name).cut.Store(true)
	w.at(name).stop()
}

func (w *world) stop() {
	for _, r := range w.all {
		r.stop()
	}
}

// ask is a request in a region; true if it passes.
func (w *world) ask(name string) bool {
	return w.uses(name, limit.Use{Key: "k", Limit: w.rule, Hits: 1})
}

func (w *world) uses(name string, uses ...limit.Use) bool {
	out := make([]limit.Outcome, len(uses))
	if err := w.at(name).Decide(w.t.Context(), time.Now(), uses, out); err != nil {
		w.t.Error(err)
	}
	if limit.Refused(uses, out) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.passed = append(w.passed, w.now())
	return true
}

// most is how much passed at most in any window that begins with a use.
func (w *world) most() (greatest int) {
	slices.SortFunc(w.passed, time.Time.Compare)
	end := 0
	for i, first := range w.passed {
		for end < len(w.passed) && w.passed[end].Before(first.Add(w.rule.Window())) {
			end++
		}
		greatest = max(greatest, end-i)
	}
	return greatest
}

func idOf(region string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://" + region + ".example/writ/ratelimit")
}

// as is a context of a call by a region.
func as(ctx context.Context, region string) context.Context {
	id := idOf(region)
	cert := &x509.Certificate{URIs: []*url.URL{id.URL()}}
	return grpcpeer.NewContext(ctx, &grpcpeer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}}})
}

// link is the way from one region to another.
type link struct {
	w        *world
	from, to string
}

var errCut = errors.New("the link is cut")

func (l link) pass(ctx context.Context) error {
	select {
	case <-time.After(l.w.delay()):
	case <-ctx.Done():
		return ctx.Err()
	}
	if l.w.at(l.from).cut.Load() || l.w.at(l.to).cut.Load() {
		return errCut
	}
	return nil
}

func (l link) Borrow(ctx context.Context, r *ratelimitpb.BorrowRequest, _ ...grpc.CallOption) (*ratelimitpb.BorrowResponse, error) {
	if err := l.pass(ctx); err != nil {
		return nil, err
	}
	resp, err := l.w.at(l.to).lender.Borrow(as(ctx, l.from), r)
	if lost := l.pass(ctx); lost != nil {
		return nil, lost
	}
	return resp, err
}

func (l link) Return(ctx context.Context, r *ratelimitpb.ReturnRequest, _ ...grpc.CallOption) (*ratelimitpb.ReturnResponse, error) {
	if err := l.pass(ctx); err != nil {
		return nil, err
	}
	return l.w.at(l.to).lender.Return(as(ctx, l.from), r)
}

func (l link) Change(ctx context.Context, r *ratelimitpb.ChangeRequest, _ ...grpc.CallOption) (*ratelimitpb.ChangeResponse, error) {
	if err := l.pass(ctx); err != nil {
		return nil, err
	}
	return l.w.at(l.to).lender.Change(as(ctx, l.from), r)
}

// sleep waits in the time of the bubble.
func sleep(d time.Duration) { <-time.After(d) }

func sliding(t testing.TB, requests uint32, window time.Duration) limit.Limit {
	t.Helper()
	l, err := limit.New(limit.Sliding, requests, window)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
