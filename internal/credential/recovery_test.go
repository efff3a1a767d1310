package credential

import (
	"crypto/x509"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// jumping gives s a clock that can be moved.
func jumping(s *Source) *atomic.Int64 {
	by := new(atomic.Int64)
	s.now = func() time.Time { return time.Now().Add(time.Duration(by.Load())) }
	return by
}

// TestAsleepForDays: the wall clock goes on while timers stand still. At the next look
// the certificate has expired, and the used token is no proof any more; the service
// keeps trying and takes the next token as soon as it is there.
func TestAsleepForDays(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	cfg := setup(t, a)
	s := newSource(t, cfg)
	clock := jumping(s)
	first := s.current()
	running(t, s)
	clock.Store(int64(72 * time.Hour))
	proctest.Until(t, 10*time.Second, "it tries to join, with a token that is used up", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.refused > 0
	})
	if s.current() != first {
		t.Error("the certificate was thrown away before there was another")
	}
	a.set(func() { a.life = 100 * time.Hour })
	offer(t, a, cfg, "t2")
	proctest.Until(t, 20*time.Second, "it has joined again", func() bool { joined, _ := a.counts(); return joined == 2 })
	proctest.Until(t, time.Second, "the new certificate is in use", func() bool { return s.current() != first })
}

// TestClockGoesBackADay: the certificate is not valid yet, so it is replaced at once,
// by itself, and once only.
func TestClockGoesBackADay(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	s := newSource(t, setup(t, a))
	clock := jumping(s)
	first := s.current()
	running(t, s)
	clock.Store(-int64(24 * time.Hour))
	proctest.Until(t, 10*time.Second, "a renewal", func() bool { return s.current() != first })
	// The authority's clock did not go back: the new one is of tomorrow too, which is
	// no reason to ask again and again.
	svid := s.current()
	if !s.wall().Before(svid.Certificates[0].NotBefore) || s.turnedBack(svid.Certificates[0], s.wall().Add(time.Second)) {
		t.Errorf("from %s, asked for at %s", svid.Certificates[0].NotBefore, s.wall())
	}
	if joined, renewed := a.counts(); joined != 1 || renewed != 1 {
		t.Errorf("%d joins, %d renewals", joined, renewed)
	}
}

// TestReconnect: clients go on over new connections, and closed ones are forgotten.
func TestReconnect(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	s := newSource(t, setup(t, a))
	conn, err := s.Dial(a.addr, caID)
	if err != nil {
		t.Fatal(err)
	}
	over := func() string {
		var p peer.Peer
		ctx := within(t, 10*time.Second)
		_, err := capb.NewCertificateAuthorityClient(conn).Renew(ctx, &capb.RenewRequest{}, grpc.Peer(&p), grpc.WaitForReady(true))
		if err == nil || p.LocalAddr == nil { // the request is empty, but arrives
			t.Fatalf("%v over %v", err, p.LocalAddr)
		}
		return p.LocalAddr.String()
	}
	first := over()
	s.reconnect()
	proctest.Until(t, 10*time.Second, "another connection", func() bool { return over() != first })
	second := over()
	s.reconnect()
	if got := over(); got != second {
		t.Error("connected anew twice within a second")
	}
	held := func() (n int) {
		s.dialed.Close(func([]*x509.Certificate) bool { n++; return false })
		return n
	}
	if n := held(); n != 1 {
		t.Errorf("%d connections are known", n)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, 10*time.Second, "closed ones are forgotten", func() bool { return held() == 0 })
}

func TestPause(t *testing.T) {
	for _, tc := range []struct{ wait, after, want time.Duration }{
		{time.Second, 0, time.Second},
		{100 * time.Millisecond, 2 * time.Second, 2500 * time.Millisecond},
		{5 * time.Second, time.Second, 5 * time.Second},
	} {
		if got := pause(tc.wait, tc.after, 0.5); got != tc.want {
			t.Errorf("%s, asked for %s: %s, want %s", tc.wait, tc.after, got, tc.want)
		}
	}
}
