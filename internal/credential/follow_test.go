package credential

import (
	"encoding/hex"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func keyID(r *pkitest.Root) string { return hex.EncodeToString(r.Cert.SubjectKeyId) }

// A service that hands the bundle to nobody acknowledges it as soon as it has it.
func TestAcknowledgesBundles(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	a.sequence = 7
	s := newSource(t, setup(t, a))
	running(t, s)
	a.hears(t, "the first bundle is acknowledged", func(r *capb.WatchBundleRequest) bool {
		return r.GetAcknowledged() == 7 && slices.Equal(r.GetAuthorities(), []string{keyID(a.root)}) && len(r.GetWaiting()) == 0
	})
	next := newRoot(t)
	a.setBundle(a.root, next)
	a.hears(t, "the second one is", func(r *capb.WatchBundleRequest) bool { return r.GetAcknowledged() == 8 })
	if len(s.currentBundle().X509Authorities()) != 2 {
		t.Error("it was acknowledged before it was in use")
	}
	// What is not taken is not acknowledged.
	a.setBundle()
	a.setBundle(next)
	a.hears(t, "the fourth one is", func(r *capb.WatchBundleRequest) bool { return r.GetAcknowledged() == 10 })
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.ContainsFunc(a.said, func(r *capb.WatchBundleRequest) bool { return r.GetAcknowledged() == 9 }) {
		t.Error("an empty bundle was acknowledged")
	}
	if a.said[0].GetAcknowledged() != 0 {
		t.Errorf("a stream began with %v", a.said[0])
	}
}

// fakeConsumer is somebody who hands bundles on.
type fakeConsumer struct {
	mu      sync.Mutex
	refuse  error
	st      Standing
	changed chan struct{}
	taken   []uint64
	up      []bool
}

func (c *fakeConsumer) Take(b *capb.Bundle) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return c.refuse
	}
	c.taken = append(c.taken, b.GetSequence())
	return nil
}

func (c *fakeConsumer) Standing() (Standing, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.st, c.changed
}

func (c *fakeConsumer) Connected(up bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up = append(c.up, up)
}

func (c *fakeConsumer) stand(st Standing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.st = st
	close(c.changed)
	c.changed = make(chan struct{})
}

// A bundle is acknowledged when everybody has it to whom it is handed on. Who has
// not is named, and so is who has an old certificate, which does not take back
// what was acknowledged.
func TestAcknowledgesWhatTheConsumerHas(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	a.sequence = 1
	s := newSource(t, setup(t, a))
	c := &fakeConsumer{st: Standing{Behind: []string{"p2", "p1"}}, changed: make(chan struct{})}
	s.Attach(c)
	running(t, s)
	a.hears(t, "two proxies are waited for", func(r *capb.WatchBundleRequest) bool {
		return slices.Equal(r.GetWaiting(), []string{"p1", "p2"}) && r.GetAcknowledged() == 0
	})
	c.stand(Standing{Behind: []string{"p2"}})
	a.hears(t, "one is", func(r *capb.WatchBundleRequest) bool {
		return slices.Equal(r.GetWaiting(), []string{"p2"}) && r.GetAcknowledged() == 0
	})
	c.stand(Standing{Stale: []string{"p1"}, Authorities: []string{"old", keyID(a.root)}})
	a.hears(t, "it is acknowledged", func(r *capb.WatchBundleRequest) bool {
		return r.GetAcknowledged() == 1 && slices.Equal(r.GetWaiting(), []string{"p1"}) && len(r.GetAuthorities()) == 2 && slices.Contains(r.GetAuthorities(), "old")
	})
	c.stand(Standing{Behind: []string{"p3"}})
	a.hears(t, "it stays so", func(r *capb.WatchBundleRequest) bool {
		return r.GetAcknowledged() == 1 && slices.Equal(r.GetWaiting(), []string{"p3"})
	})
	a.setBundle(a.root, newRoot(t))
	proctest.Until(t, 10*time.Second, "it takes the second", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.Contains(c.taken, 2)
	})
	c.stand(Standing{})
	a.hears(t, "and has it", func(r *capb.WatchBundleRequest) bool { return r.GetAcknowledged() == 2 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.up, []bool{true}) {
		t.Errorf("connected: %v", c.up)
	}
}

// What the consumer does not take is offered again, and not acknowledged.
func TestConsumerThatRefuses(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	a.sequence = 1
	s := newSource(t, setup(t, a))
	c := &fakeConsumer{refuse: errors.New("no"), changed: make(chan struct{})}
	s.Attach(c)
	running(t, s)
	a.hears(t, "nothing is acknowledged", func(r *capb.WatchBundleRequest) bool { return r.GetAcknowledged() == 0 })
	c.mu.Lock()
	c.refuse = nil
	c.mu.Unlock()
	a.hears(t, "it is offered again", func(r *capb.WatchBundleRequest) bool { return r.GetAcknowledged() == 1 })
}

// A service whose authority does not sign any more gets a new certificate soon, and
// says when it uses none of the old.
func TestRenewsWhenAnotherAuthoritySigns(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	s := newSource(t, setup(t, a))
	running(t, s)
	a.hears(t, "it is there", func(*capb.WatchBundleRequest) bool { return true })
	first := s.current()
	a.set(func() { a.active = "0123" })
	a.setBundle(a.root, newRoot(t))
	proctest.Until(t, hurryMax+5*time.Second, "it renews", func() bool { return s.current() != first })
	if joined, _ := a.counts(); joined != 1 {
		t.Errorf("%d joins", joined)
	}
}

func TestHurryIn(t *testing.T) {
	for _, tc := range []struct {
		left      time.Duration
		useless   bool
		low, high time.Duration
	}{
		{time.Hour, false, renewMin, hurryMax},
		{20 * time.Second, false, renewMin, 5 * time.Second},
		{time.Second, false, renewMin, renewMin},
		{-time.Hour, false, renewMin, renewMin},
		{time.Hour, true, 0, renewMin},
	} {
		for _, jitter := range []float64{0, 0.5, 0.999} {
			if got := hurryIn(tc.left, tc.useless, jitter); got < tc.low || got > tc.high {
				t.Errorf("%s left, useless %v: %s", tc.left, tc.useless, got)
			}
		}
	}
}

// TestRootReplacedInAHurry: the authority dropped the root of this service's
// certificate while the service was not connected. With a new token it joins again,
// long before its certificate expires.
func TestRootReplacedInAHurry(t *testing.T) {
	t.Parallel()
	old := newAuthority(t, newRoot(t))
	cfg := setup(t, old)
	s := newSource(t, cfg)
	now := newAuthority(t, newRoot(t))
	s.cfg.CA = now.addr
	put(t, cfg.TrustBundle, now.root.PEM())
	offer(t, now, cfg, "t2")
	if !s.disowned() {
		t.Fatal("it does not see that its root is gone")
	}
	if err := s.renewOrJoin(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if joined, _ := now.counts(); joined != 1 || s.disowned() || authorityOf(s.current()) != keyID(now.root) {
		t.Errorf("%d joins, %s", joined, s.current().ID)
	}
	if again := newSource(t, cfg); authorityOf(again.current()) != keyID(now.root) {
		t.Errorf("%s is not on disk", filepath.Join(cfg.Dir, identityFile))
	}
}
