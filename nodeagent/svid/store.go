package svid

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/nodeagent/latest"
)

const (
	// issueTimeout bounds one request to the authority; it is shorter than the
	// half of the shortest life (10 s).
	issueTimeout = 3 * time.Second
	// issueParallel bounds how many requests are under way at once.
	issueParallel = 16
	// lookAtClock is how often a waiting renewal looks at the wall clock, which
	// may jump while timers do not (suspend, adjusted clock).
	lookAtClock = 5 * time.Second
)

// Issuer signs certificate requests.
type Issuer interface {
	// Issue asks for a certificate for id; csr is PKCS #10 in DER.
	Issue(ctx context.Context, id spiffeid.ID, csr []byte) (Issued, error)
}

// Observer hears what happens, for metrics. It must not block.
type Observer interface {
	SVIDIssued()
	SVIDFailed()
}

// Config is what NewStore needs.
type Config struct {
	Issuer   Issuer
	Observer Observer
	// Moved is called when a certificate was replaced or forgotten; nil for nobody.
	Moved func()
	Log   *slog.Logger
	// Now is the wall clock, time.Now if it is nil.
	Now func() time.Time
}

// Store has the SVIDs of the workloads whose proxies ask. It is safe for
// concurrent use.
type Store struct {
	cfg         Config
	ctx         context.Context //nolint:containedctx // the life of the renewals, ended by Close
	cancel      context.CancelFunc
	wg          sync.WaitGroup
	slots       chan struct{}
	retry       latest.Value[struct{}]
	authorities latest.Value[authorities]

	mu      sync.Mutex
	closed  bool
	entries map[key]*entry
}

// authorities are what the authority says that may be a reason to renew.
type authorities struct {
	// active signs now, trusted are the roots, by their key ids.
	active  string
	trusted []string
	// revoked are the serial numbers of revoked certificates.
	revoked map[string]struct{}
}

type key struct {
	proxyID string
	id      spiffeid.ID
}

type entry struct {
	key  key
	svid latest.Value[*SVID]
	refs int // guarded by Store.mu

	mu     sync.Mutex
	issued uint64
}

// NewStore returns a store; Close ends its renewals.
func NewStore(cfg Config) *Store {
	ctx, cancel := context.WithCancel(context.Background())
	if cfg.Moved == nil {
		cfg.Moved = func() {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Store{cfg: cfg, ctx: ctx, cancel: cancel, slots: make(chan struct{}, issueParallel), entries: make(map[key]*entry)}
}

// Close ends all renewals and waits for them.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// Subscription is one proxy stream's interest in an SVID.
type Subscription struct {
	store *Store
	entry *entry
	once  sync.Once
}

// Subscribe starts, or joins, the renewal of the certificate of a proxy with an
// identity.
func (s *Store) Subscribe(proxyID string, id spiffeid.ID) *Subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{proxyID, id}
	e := s.entries[k]
	if e == nil {
		e = &entry{key: k}
		s.entries[k] = e
		if !s.closed {
			s.wg.Go(func() { s.run(e) })
		}
	}
	e.refs++
	return &Subscription{store: s, entry: e}
}

// Current returns the certificate, nil if there is none that is valid, and a
// channel that is closed when it is replaced.
func (s *Subscription) Current() (*SVID, <-chan struct{}) {
	v, changed := s.entry.svid.Get()
	if v != nil && !v.notAfter.After(s.store.cfg.Now()) {
		v = nil
	}
	return v, changed
}

// Close ends the interest.
func (s *Subscription) Close() {
	s.once.Do(func() {
		s.store.mu.Lock()
		s.entry.refs--
		s.store.mu.Unlock()
	})
}

// Wake lets failed requests be tried again now: the authority is back.
func (s *Store) Wake() { s.retry.Set(struct{}{}) }

// SetAuthorities says which authority signs now and which roots are trusted, by
// their key ids. Certificates of others than the one that signs are renewed soon,
// and those that nobody trusts any more at once.
func (s *Store) SetAuthorities(active string, trusted []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, _ := s.authorities.Get(); old.active != active || !slices.Equal(old.trusted, trusted) {
		s.authorities.Set(authorities{active, slices.Clone(trusted), old.revoked})
	}
}

// SetRevoked says which certificates are revoked, by their serial numbers in
// lower-case hexadecimal without leading zeros. They are replaced at once.
func (s *Store) SetRevoked(serials map[string]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, _ := s.authorities.Get(); !maps.Equal(old.revoked, serials) {
		s.authorities.Set(authorities{old.active, old.trusted, serials})
	}
	// What was refused for a revocation may be granted now.
	s.retry.Set(struct{}{})
}

// Status is the state of one proxy's certificate.
type Status struct {
	ProxyID string
	ID      spiffeid.ID
	// SVID is nil if there is none yet.
	SVID *SVID
	// Issued counts the certificates obtained.
	Issued uint64
}

// Status lists all certificates, by proxy id.
func (s *Store) Status() []Status {
	s.mu.Lock()
	entries := make([]*entry, 0, len(s.entries))
	for _, e := range s.entries {
		entries = append(entries, e)
	}
	s.mu.Unlock()
	out := make([]Status, 0, len(entries))
	for _, e := range entries {
		v, _ := e.svid.Get()
		e.mu.Lock()
		out = append(out, Status{ProxyID: e.key.proxyID, ID: e.key.id, SVID: v, Issued: e.issued})
		e.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.ProxyID, b.ProxyID), cmp.Compare(a.ID.String(), b.ID.String()))
	})
	return out
}

// run obtains and renews until the store is closed or nobody is interested.
func (s *Store) run(e *entry) {
	defer s.cfg.Moved()
	for attempt := 0; !s.forget(e); {
		_, retry := s.retry.Get()
		v, err := s.obtain(e.key.id)
		if s.ctx.Err() != nil {
			return
		}
		if err != nil {
			s.failed(e, attempt, err)
			wait := atLeast(retryIn(attempt, s.left(e), rand.Float64()), rpc.RetryAfter(err), rand.Float64())
			attempt++
			if !s.sleep(s.cfg.Now().Add(wait), retry) {
				return
			}
			continue
		}
		attempt = 0
		s.publish(e, v)
		if !s.untilRenewal(v) {
			return
		}
	}
}

// untilRenewal sleeps until a certificate that was obtained now is to be renewed;
// false means that the store is being closed.
func (s *Store) untilRenewal(v *SVID) bool {
	now := s.cfg.Now().Round(0) // the wall clock
	until := now.Add(renewIn(v.notBefore, v.notAfter, now, rand.Float64()))
	var seen <-chan struct{}
	for {
		o, changed := s.authorities.Get()
		if _, revoked := o.revoked[v.serial]; revoked {
			return true
		}
		if changed != seen && o.active != "" && o.active != v.authority {
			useless := len(o.trusted) > 0 && !slices.Contains(o.trusted, v.authority)
			if soon := now.Add(hurryIn(v.notAfter.Sub(now), useless, rand.Float64())); soon.Before(until) {
				until = soon
			}
		}
		seen = changed
		if next := now.Add(lookAtClock); !s.sleep(earlier(until, next), changed) {
			return false
		}
		now = s.cfg.Now().Round(0)
		if !now.Before(until) || turnedBack(v.notBefore, v.came, now) {
			return true
		}
	}
}

// forget drops an entry that nobody is interested in.
func (s *Store) forget(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.refs > 0 {
		return false
	}
	// Without an interest there is nobody left who could ask this entry, and the
	// next one starts another.
	delete(s.entries, e.key)
	return true
}

func (s *Store) obtain(id spiffeid.ID) (*SVID, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
	ctx, cancel := context.WithTimeout(s.ctx, issueTimeout)
	defer cancel()
	private, csr, err := request(id)
	if err != nil {
		return nil, err
	}
	issued, err := s.cfg.Issuer.Issue(ctx, id, csr)
	if err != nil {
		return nil, err
	}
	return accept(id, private, issued, s.cfg.Now())
}

func (s *Store) publish(e *entry, v *SVID) {
	e.mu.Lock()
	e.issued++
	e.mu.Unlock()
	e.svid.Set(v)
	s.cfg.Observer.SVIDIssued()
	s.cfg.Moved()
	s.cfg.Log.Info("certificate obtained", slog.String("proxy", e.key.proxyID), slog.Any("svid", v))
}

func (s *Store) failed(e *entry, attempt int, err error) {
	s.cfg.Observer.SVIDFailed()
	level := slog.LevelDebug
	if attempt == 0 || attempt%20 == 19 { // the first, then one every minute or two
		level = slog.LevelWarn
	}
	s.cfg.Log.Log(s.ctx, level, "no certificate from the authority, will ask again", slog.String("proxy", e.key.proxyID),
		slog.String("spiffe_id", e.key.id.String()), slog.Duration("valid_for", max(s.left(e), 0)), slog.Any("error", err))
}

// left says how long the certificate at hand is still valid.
func (s *Store) left(e *entry) time.Duration {
	v, _ := e.svid.Get()
	if v == nil {
		return 0
	}
	return v.notAfter.Sub(s.cfg.Now())
}

// sleep waits until a wall-clock time, until early is closed, or until the clock is
// seen to go back; false means that the store is being closed.
func (s *Store) sleep(until time.Time, early <-chan struct{}) bool {
	until = until.Round(0) // without monotonic reading: the wall clock counts
	began := s.cfg.Now().Round(0)
	for {
		now := s.cfg.Now().Round(0)
		left := until.Sub(now)
		if left <= 0 || now.Before(began) {
			return true
		}
		timer := time.NewTimer(min(left, lookAtClock))
		select {
		case <-timer.C:
		case <-early:
			timer.Stop()
			return true
		case <-s.ctx.Done():
			timer.Stop()
			return false
		}
	}
}
