package regions

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/rpc"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

const (
	// maxCounter bounds the name of a counter, in bytes.
	maxCounter = 16 << 10
	// unknownRetry is when to ask again for a counter that this region does not know, or
	// does not lend of.
	unknownRetry = 5 * time.Second
	// wholeRest is how much is lent though it is more than a quarter of what is left.
	wholeRest = 64
)

// Lender lends of this region's part of limits. It implements writ.ratelimit.v1.Regions.
type Lender struct {
	ratelimitpb.UnimplementedRegionsServer

	// Store is the store of this region.
	Store    Decider
	Division *Division
	// Percent is how much of its part each other region can have at most.
	Percent int
	// Find gives the counter that operators call so, with its whole limit, and how this
	// region's part of it is counted.
	Find func(name string) (limit.Use, error)
	// Counted is the limit that the store is asked for: with leases another than it is.
	Counted func(part limit.Limit, mode limit.Mode) limit.Limit
	Now     func() time.Time
	// Peers are the other regions by the identity of their ratelimit, which those of one
	// trust domain have in common.
	Peers map[spiffeid.ID][]Peer
	// Apply changes this region's part of a counter for an operator of another region.
	Apply func(ctx context.Context, r *ratelimitpb.ChangeRequest) (*ratelimitpb.ChangeResponse, error)
	// Borrower is this region's store, which has the metrics.
	Borrower *Store
	Log      *slog.Logger
}

// account is where what is lent of one counter is counted.
type account struct {
	part, gate limit.Use
	valid      time.Duration
	window     time.Duration
}

// account finds the counter that another region speaks of. ok is false if nothing of it
// is lent.
func (l *Lender) account(name, to string) (a account, ok bool) {
	if len(name) > maxCounter {
		return a, false
	}
	u, err := l.Find(name)
	if err != nil || u.Mode == limit.Local {
		return a, false
	}
	if a.valid, ok = validFor(u.Limit); !ok {
		return a, false
	}
	part, err := l.Division.Of(u.Limit)
	if err != nil {
		return a, false
	}
	// Of a little part something is lent too.
	most := (uint64(part.Requests())*uint64(l.Percent) + 99) / 100 //nolint:gosec // 0 to 100
	a.window = u.Limit.Window()
	gate, err := limit.New(limit.Sliding, uint32(most), a.window+a.valid) //nolint:gosec // at most the part
	if err != nil {
		return a, false
	}
	a.part = limit.Use{Key: u.Key, Limit: l.Counted(part, u.Mode)}
	a.gate = limit.Use{Key: lentKey(u.Key, to), Limit: gate}
	return a, most > 0
}

// held names what is lent in the store. A region can end only what it borrowed itself,
// and say of it only what it came to.
func held(to, id string) string { return "lent:" + to + ":" + id }

// caller is the region that asks, by its name and by the identity that it showed: it
// cannot ask in the name of another trust domain's. One that does not say its name is the
// one of its trust domain.
func (l *Lender) caller(ctx context.Context, region string) (Peer, error) {
	of := rpc.CallerFrom(ctx)
	peers := l.Peers[of.ID]
	if region == "" && len(peers) == 1 {
		return peers[0], nil
	}
	for _, p := range peers {
		if p.Name == region {
			return p, nil
		}
	}
	return Peer{}, status.Errorf(codes.PermissionDenied, "%s is not the ratelimit of the region %q", of, region)
}

// Borrow implements the service.
func (l *Lender) Borrow(ctx context.Context, r *ratelimitpb.BorrowRequest) (*ratelimitpb.BorrowResponse, error) {
	if r.GetDivision() != l.Division.String() {
		return nil, status.Errorf(codes.FailedPrecondition, "limits are divided otherwise here: %s; nothing is lent before all regions have the same shares", l.Division)
	}
	if len(r.GetAsks()) > batch {
		return nil, status.Errorf(codes.InvalidArgument, "%d asks are more than %d", len(r.GetAsks()), batch)
	}
	to, err := l.caller(ctx, r.GetRegion())
	if err != nil {
		return nil, err
	}
	out := &ratelimitpb.BorrowResponse{Loans: make([]*ratelimitpb.Loan, 0, len(r.GetAsks()))}
	for _, ask := range r.GetAsks() {
		loan, err := l.lend(ctx, to.Name, ask)
		if err != nil {
			l.Log.WarnContext(ctx, "nothing is lent: the store of counters failed", slog.Any("error", err))
			return nil, status.Error(codes.Unavailable, "the store of counters failed")
		}
		l.Borrower.metrics.lent.WithLabelValues(to.Name).Add(float64(loan.GetHits()))
		out.Loans = append(out.Loans, loan)
	}
	return out, nil
}

func nothing(retry time.Duration) *ratelimitpb.Loan {
	return &ratelimitpb.Loan{RetryAfter: durationpb.New(retry)}
}

// lend looks what is left and holds some of it: for a window after the last moment in
// which it can be used.
func (l *Lender) lend(ctx context.Context, to string, ask *ratelimitpb.Ask) (*ratelimitpb.Loan, error) {
	a, ok := l.account(ask.GetCounter(), to)
	if !ok {
		return nothing(unknownRetry), nil
	}
	look := []limit.Use{a.part, a.gate}
	look[0].Observe, look[1].Observe = true, true
	var out [2]limit.Outcome
	if err := l.Store.Decide(ctx, l.Now(), look, out[:]); err != nil {
		return nil, err
	}
	rest := uint64(out[0].Remaining)
	// At most a quarter, so that the next one gets something too, but of a little rest all.
	hits := min(uint64(max(ask.GetHits(), 1)), uint64(out[1].Remaining), max(rest/4, min(rest, wholeRest)))
	if hits == 0 {
		return nothing(max(out[0].RetryAfter, out[1].RetryAfter, time.Millisecond)), nil
	}
	id := strconv.FormatUint(hits, 10) + "." + rand.Text()
	hold := []limit.Use{a.part, a.gate}
	for i := range hold {
		hold[i].Hits, hold[i].Hold, hold[i].HoldFor = hits, held(to, id), a.window+a.valid
	}
	if err := l.Store.Decide(ctx, l.Now(), hold, out[:]); err != nil {
		return nil, err
	}
	if limit.Refused(hold, out[:]) { // somebody was faster
		return nothing(stale(a.valid) / 4), nil
	}
	return &ratelimitpb.Loan{Hits: uint32(hits), Id: id, Valid: durationpb.New(a.valid)}, nil //nolint:gosec // at most what is left
}

// Return implements the service.
func (l *Lender) Return(ctx context.Context, r *ratelimitpb.ReturnRequest) (*ratelimitpb.ReturnResponse, error) {
	if len(r.GetReturned()) > batch {
		return nil, status.Errorf(codes.InvalidArgument, "%d loans are more than %d", len(r.GetReturned()), batch)
	}
	to, err := l.caller(ctx, r.GetRegion())
	if err != nil {
		return nil, err
	}
	for _, ret := range r.GetReturned() {
		size, ok := sizeOf(ret.GetId())
		if !ok {
			return nil, status.Error(codes.InvalidArgument, "that is no loan's id")
		}
		a, ok := l.account(ret.GetCounter(), to.Name)
		if !ok {
			continue // the limit was edited meanwhile: what is held ends by itself
		}
		settle := []limit.Use{a.part, a.gate}
		for i := range settle {
			settle[i].Op, settle[i].Hold, settle[i].HoldFor = limit.Settle, held(to.Name, ret.GetId()), a.window+a.valid
			settle[i].Hits = uint64(min(ret.GetUsed(), size))
		}
		if err := l.Store.Decide(ctx, l.Now(), settle, make([]limit.Outcome, len(settle))); err != nil {
			return nil, status.Error(codes.Unavailable, "the store of counters failed")
		}
	}
	return &ratelimitpb.ReturnResponse{}, nil
}

// Change implements the service.
func (l *Lender) Change(ctx context.Context, r *ratelimitpb.ChangeRequest) (*ratelimitpb.ChangeResponse, error) {
	of, err := l.caller(ctx, r.GetRegion())
	if err != nil {
		return nil, err
	}
	if !of.Operators {
		return nil, status.Errorf(codes.PermissionDenied, "operators of region %s change nothing here: regions.peers has no operators: true for it", of.Name)
	}
	return l.Apply(ctx, r)
}

// sizeOf is how many hits a loan had, by its id. An id that was made up names nothing
// that is held.
func sizeOf(id string) (uint32, bool) {
	text, _, ok := strings.Cut(id, ".")
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), ok && err == nil && n > 0 && len(id) <= maxID
}
