package regions

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/service"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

const (
	// heartbeat is how often a region is asked at least, for nothing if need be.
	heartbeat = time.Second
	// callTimeout bounds a call to another region.
	callTimeout = time.Second
	// queue bounds the counters that wait to be asked for, which ask again by
	// themselves, and the loans that are to be given back, which end by themselves.
	queue = 1024
	// batch is how many loans are asked for, or given back, at once.
	batch = 64
	// idle is after how long without use loans are given back, or half of their time if
	// that is longer.
	idle = time.Second
	// sweepEvery is how often that is looked for.
	sweepEvery = time.Second
	// lastReturns is how long that may take at the end.
	lastReturns = 250 * time.Millisecond
	// maxID bounds the name of a loan, in bytes.
	maxID = 128
)

// peer is another region.
type peer struct {
	index   int
	name    string
	asks    chan *cell
	returns chan returned

	mu   sync.Mutex
	up   bool
	ever bool          // it answered once
	last time.Duration // it answered a call that began so long after the machine's start
	// client reaches it; nil before Connect.
	client ratelimitpb.RegionsClient
}

// returned is what is to be given back of a counter.
type returned struct {
	key, name string
	loan      loan
}

func newPeer(index int, name string) *peer {
	return &peer{index: index, name: name, asks: make(chan *cell, queue), returns: make(chan returned, queue)}
}

// answered notes whether a call that began then was answered, and says whether that is
// a change.
func (p *peer) answered(began time.Duration, ok bool) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed = p.up != ok
	if p.up = ok; ok {
		p.ever, p.last = true, began
	}
	return changed
}

func (p *peer) state() (up, ever bool, last time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up, p.ever, p.last
}

// ask has hits of a counter borrowed in the background; its shard is locked.
func (s *Store) ask(c *cell, now moment) {
	if c.asking != nil {
		return
	}
	c.asking = make(chan struct{})
	s.askNext(c, now)
}

// askNext asks a region that may have something, and ends the asking if there is none.
func (s *Store) askNext(c *cell, now moment) {
	for _, p := range s.peers {
		if up, _, _ := p.state(); !up || now.up < c.quiet[p.index] {
			continue
		}
		select {
		case p.asks <- c:
			return
		default:
		}
	}
	c.end()
}

// end tells those who wait that what was asked for is answered.
func (c *cell) end() {
	if c.asking != nil {
		close(c.asking)
		c.asking = nil
	}
}

// Run gives back what is not used until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	return service.Every(ctx, sweepEvery, func(time.Time) { s.sweep(s.moment(), false) })
}

// sweep gives back what is over or idle, or all.
func (s *Store) sweep(now moment, all bool) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for key, c := range sh.cells {
			unused := now.up-c.last > max(idle, c.valid/2)
			s.back(c, c.ended(now, unused || all))
			if unused && c.asking == nil {
				delete(sh.cells, key)
			}
		}
		sh.mu.Unlock()
	}
}

// back has loans given back in the background, also those of which nothing is left: what
// is settled is one of a few entries of the other region's counter, and what is held has
// an entry of its own until its time is over.
func (s *Store) back(c *cell, loans []loan) {
	for _, l := range loans {
		select {
		case l.peer.returns <- returned{c.key, c.name, l}:
		default: // it ends by itself
		}
	}
}

// Connect borrows from a region, and gives back to it, until ctx ends.
func (s *Store) Connect(ctx context.Context, name string, client ratelimitpb.RegionsClient, log *slog.Logger) error {
	i := slices.IndexFunc(s.peers, func(p *peer) bool { return p.name == name })
	if i < 0 {
		return errors.New("there is no region " + name)
	}
	p := s.peers[i]
	p.mu.Lock()
	p.client = client
	p.mu.Unlock()
	log = log.With(slog.String("region", name))
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	s.borrow(ctx, p, client, nil, log)
	for {
		select {
		case <-ctx.Done():
			s.leave(ctx, p, client, log)
			return ctx.Err()
		case c := <-p.asks:
			s.borrow(ctx, p, client, gather(p.asks, c), log)
		case r := <-p.returns:
			s.giveBack(ctx, p, client, gather(p.returns, r), log)
		case <-tick.C:
			if _, ever, last := p.state(); !ever || s.up()-last >= heartbeat/2 {
				s.borrow(ctx, p, client, nil, log)
			}
		}
	}
}

// leave gives back all that a region lent.
func (s *Store) leave(ctx context.Context, p *peer, client ratelimitpb.RegionsClient, log *slog.Logger) {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastReturns)
	defer cancel()
	s.sweep(s.moment(), true)
	for len(p.returns) > 0 && last.Err() == nil {
		s.giveBack(last, p, client, gather(p.returns, <-p.returns), log)
	}
}

// gather takes what waits behind the first.
func gather[T any](from chan T, first T) []T {
	all := []T{first}
	for len(all) < batch {
		select {
		case one := <-from:
			all = append(all, one)
			continue
		default:
		}
		break
	}
	return all
}

// borrow asks a region for hits of these counters, all at once.
func (s *Store) borrow(ctx context.Context, p *peer, client ratelimitpb.RegionsClient, cells []*cell, log *slog.Logger) {
	began := s.moment()
	req := &ratelimitpb.BorrowRequest{Region: s.division.own, Division: s.division.String(), Asks: make([]*ratelimitpb.Ask, len(cells))}
	for i, c := range cells {
		sh := s.shard(c.key)
		sh.mu.Lock()
		req.Asks[i] = &ratelimitpb.Ask{Counter: c.name, Hits: uint32(c.demand())} //nolint:gosec // at most the limit
		sh.mu.Unlock()
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	resp, err := client.Borrow(call, req)
	cancel()
	if err == nil && len(resp.GetLoans()) != len(cells) {
		err = status.Errorf(codes.Internal, "%d loans for %d asks", len(resp.GetLoans()), len(cells))
	}
	if changed := p.answered(began.up, err == nil); changed && err == nil {
		log.InfoContext(ctx, "the other region answers: it lends of its part of limits")
	} else if changed && ctx.Err() == nil {
		log.WarnContext(ctx, "the other region is away: only this one's part of limits passes here", slog.Any("error", err))
	}
	if err != nil && ctx.Err() == nil {
		s.metrics.failures.WithLabelValues(p.name).Inc()
		log.DebugContext(ctx, "the other region does not lend", slog.Any("error", err))
	}
	for i, c := range cells {
		s.lent(ctx, p, c, req.GetAsks()[i].GetHits(), resp.GetLoans(), i, began)
	}
}

// lent takes in what a region said to the ask of one counter; loans is empty if it did
// not answer.
func (s *Store) lent(ctx context.Context, p *peer, c *cell, asked uint32, loans []*ratelimitpb.Loan, i int, began moment) {
	var got *ratelimitpb.Loan
	if i < len(loans) {
		got = loans[i]
	}
	l := loan{peer: p, id: got.GetId(), size: uint64(min(got.GetHits(), asked)), rule: c.rule, began: began}
	l.left = l.size
	if valid := got.GetValid(); l.size > 0 && valid.IsValid() {
		l.valid = min(c.valid, valid.AsDuration())
	}
	if l.size > 0 && (len(l.id) > maxID || !s.record(ctx, c.key, &l)) {
		s.back(c, []loan{l})
		l.size = 0
	}
	now := s.moment()
	sh := s.shard(c.key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	switch {
	case l.size > 0 && sh.cells[c.key] == c:
		s.metrics.borrowed.WithLabelValues(p.name).Add(float64(l.size))
		s.back(c, c.ended(now, false))
		if len(c.loans) >= maxLoans {
			s.back(c, c.loans[:1])
			c.loans = append(c.loans[:0], c.loans[1:]...)
		}
		c.loans = append(c.loans, l)
		c.need = 0
		c.end()
	case l.size > 0: // it was forgotten meanwhile
		s.back(c, []loan{l})
		c.end()
	default:
		c.quiet[p.index] = now.up + pause(got, stale(c.valid))
		s.askNext(c, now)
	}
}

// pause is how long not to ask again for a counter that there was nothing of.
func pause(got *ratelimitpb.Loan, most time.Duration) time.Duration {
	if after := got.GetRetryAfter(); after != nil && after.IsValid() && after.AsDuration() > 0 {
		return min(after.AsDuration(), most)
	}
	return most
}

// record notes in this region's store what was borrowed, for all its replicas, and says
// whether it is not more than the other region can have: one that lies about what it has
// must not let more pass here than the limit. What is borrowed may be used for a while, so
// it counts for a window and that while: in no window more than the part is used.
func (s *Store) record(ctx context.Context, key string, l *loan) bool {
	u, err := s.borrowed(key, l)
	if err != nil {
		return false
	}
	var out [1]limit.Outcome
	if err := s.below.Decide(ctx, s.now(), []limit.Use{u}, out[:]); err != nil || out[0].Over {
		return false
	}
	l.at = out[0].At
	return true
}

func (s *Store) borrowed(key string, l *loan) (limit.Use, error) {
	valid, _ := validFor(l.rule)
	rule, err := limit.New(limit.Sliding, s.division.part(l.peer.name, l.rule.Requests()), l.rule.Window()+valid)
	return limit.Use{Key: borrowedKey(key, l.peer.name), Limit: rule, Hits: l.size}, err
}

// borrowedKey is where it is counted what was borrowed of a region, lentKey what was lent
// to it. No value of a dimension has a "%" with anything but two digits behind it.
func borrowedKey(key, region string) string { return key + "%borrowed%" + region }

func lentKey(key, region string) string { return key + "%lent%" + region }

// giveBack tells a region what of its loans was used.
func (s *Store) giveBack(ctx context.Context, p *peer, client ratelimitpb.RegionsClient, all []returned, log *slog.Logger) {
	req := &ratelimitpb.ReturnRequest{Region: s.division.own}
	for _, r := range all {
		used := uint32(r.loan.size - r.loan.left) //nolint:gosec // at most what was asked for
		req.Returned = append(req.Returned, &ratelimitpb.Returned{Counter: r.name, Id: r.loan.id, Used: used})
		s.metrics.returned.WithLabelValues(r.loan.peer.name).Add(float64(r.loan.left))
		if u, err := s.borrowed(r.key, &r.loan); err == nil && r.loan.left > 0 && !r.loan.at.IsZero() {
			u.Op, u.Hits, u.At = limit.Refund, r.loan.left, r.loan.at
			_ = s.below.Decide(ctx, s.now(), []limit.Use{u}, make([]limit.Outcome, 1)) // else it leaves the window by itself
		}
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := client.Return(call, req); err != nil && ctx.Err() == nil { // they end by themselves
		s.metrics.failures.WithLabelValues(p.name).Inc()
		log.DebugContext(ctx, "the other region does not take back what it lent", slog.Any("error", err))
	}
}
