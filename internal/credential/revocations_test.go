package credential

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// WatchRevocations sends what revoke said last.
func (a *authority) WatchRevocations(_ *capb.WatchRevocationsRequest, s grpc.ServerStreamingServer[capb.RevocationList]) error {
	for {
		a.mu.Lock()
		list, changed := a.revoked, a.changed
		a.mu.Unlock()
		if list != nil {
			if err := s.Send(list); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

// revoke makes r be all that is revoked.
func (a *authority) revoke(r ...*capb.Revocation) *capb.RevocationList {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = &capb.RevocationList{Sequence: a.revoked.GetSequence() + 1, Revocations: r}
	close(a.changed)
	a.changed = make(chan struct{})
	return a.revoked
}

func serial(c tls.Certificate) *capb.Revocation {
	return &capb.Revocation{Serial: "00" + strings.ToUpper(c.Leaf.SerialNumber.Text(16)), SpiffeId: c.Leaf.URIs[0].String()}
}

// serving serves health checks with the credentials of s.
func serving(t *testing.T, s *Source) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(s.ServerCredentials()))
	healthpb.RegisterHealthServer(srv, health.NewServer())
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	return l.Addr().String()
}

// caller is a client with one certificate.
type caller struct {
	addr string
	pair tls.Certificate
}

func newCaller(t *testing.T, addr string, r *pkitest.Root, name string) caller {
	t.Helper()
	return caller{addr, r.Pair(t, pkitest.Leaf("spiffe://cluster.local/ns/default/sa/"+name, time.Hour))}
}

// call makes a connection and a stream on it, whose end closes ended.
func (c caller) call(t *testing.T) (ended <-chan struct{}, err error) {
	t.Helper()
	conn, err := grpc.NewClient(c.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.pair}, InsecureSkipVerify: true, //nolint:gosec // the server is not what these tests are about
	})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); _ = conn.Close() })
	stream, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return nil, err
	}
	if _, err := stream.Recv(); err != nil {
		return nil, err
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = stream.Recv() // nothing comes but the end
	}()
	return over, nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestRevokedCallers: a service of ours refuses who is revoked in new connections and
// ends his live streams within a second, and nobody else's; after a start, too, while
// the authority is away.
func TestRevokedCallers(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	cfg := setup(t, a)
	s := newSource(t, cfg)
	running(t, s)
	addr := serving(t, s)
	one, two, other := newCaller(t, addr, a.root, "one"), newCaller(t, addr, a.root, "two"), newCaller(t, addr, a.root, "other")
	var live []<-chan struct{}
	for _, c := range []caller{one, two, other} {
		ended, err := c.call(t)
		if err != nil {
			t.Fatal(err)
		}
		live = append(live, ended)
	}
	said := a.revoke(serial(one.pair), &capb.Revocation{SpiffeId: two.pair.Leaf.URIs[0].String()})
	proctest.Until(t, time.Second, "the streams of those who are revoked end", func() bool { return isClosed(live[0]) && isClosed(live[1]) })
	for _, c := range []caller{one, two} {
		if _, err := c.call(t); err == nil {
			t.Errorf("%s is let in again", c.pair.Leaf.URIs[0])
		}
	}
	if _, err := other.call(t); err != nil || isClosed(live[2]) {
		t.Errorf("somebody else: %v, his stream has ended: %t", err, isClosed(live[2]))
	}

	proctest.Until(t, 5*time.Second, "the list is on disk", func() bool {
		list, err := readRevocations(filepath.Join(cfg.Dir, revocationsFile))
		return err == nil && proto.Equal(list, said)
	})
	cfg.CA = "127.0.0.1:1"
	again := newSource(t, cfg)
	var told *capb.RevocationList
	again.OnRevocations(func(l *capb.RevocationList) { told = l }, nil)
	if !proto.Equal(told, said) {
		t.Errorf("told of %v", told)
	}
	one.addr = serving(t, again)
	if _, err := one.call(t); err == nil {
		t.Error("after a start without the authority the revoked certificate is good")
	}

	a.revoke()
	proctest.Until(t, 5*time.Second, "what is taken back is good again", func() bool {
		two.addr = addr
		_, err := two.call(t)
		return err == nil
	})
}

// TestRevocationsAreKeptFirst: who hears of a list may tell others, and die; the start
// after that knows the list.
func TestRevocationsAreKeptFirst(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	cfg := setup(t, a)
	s := newSource(t, cfg)
	heard := make(chan error, 10)
	s.OnRevocations(func(l *capb.RevocationList) {
		kept, err := readRevocations(filepath.Join(cfg.Dir, revocationsFile))
		if err == nil && !proto.Equal(kept, l) {
			err = fmt.Errorf("told of %v, kept %v", l, kept)
		}
		heard <- err
	}, nil)
	a.revoke(&capb.Revocation{SpiffeId: "spiffe://cluster.local/ns/default/sa/one"})
	running(t, s)
	if err := <-heard; err != nil {
		t.Error(err)
	}
}

// TestRevocationsFile: what is damaged is not used, and no reason not to start.
func TestRevocationsFile(t *testing.T) {
	a := newAuthority(t, newRoot(t))
	cfg := setup(t, a)
	s := newSource(t, cfg)
	if err := s.saveRevocations(&capb.RevocationList{Sequence: 7, Revocations: []*capb.Revocation{{SpiffeId: "spiffe://cluster.local/ns/a/sa/b"}}}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Dir, revocationsFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if newSource(t, cfg).revokedNow().list.GetSequence() != 7 {
		t.Error("a good file is not used")
	}
	for i, data := range [][]byte{nil, good[:20], good[:len(good)-1], append([]byte{1}, good[1:]...), append(good[:len(good):len(good)], 0)} {
		put(t, path, data)
		if r := newSource(t, cfg).revokedNow(); r.list != nil || len(r.identities) != 0 {
			t.Errorf("damage %d: %v is used", i, r.list)
		}
	}
}

// TestRevokedItself: a service whose own certificate is revoked proves anew who it is.
func TestRevokedItself(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	cfg := setup(t, a)
	s := newSource(t, cfg)
	a.set(func() { a.refuseRenewals = true })
	offer(t, a, cfg, "t2")
	running(t, s)
	first := s.current()
	a.revoke(&capb.Revocation{Serial: first.Certificates[0].SerialNumber.Text(16), SpiffeId: pilotID.String()})
	proctest.Until(t, 10*time.Second, "it joins again", func() bool { joined, _ := a.counts(); return joined == 2 && s.current() != first })
}

// TestRevokedServer: connections to a service of ours that is revoked end, and none
// begins.
func TestRevokedServer(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	server, client := newSource(t, setup(t, a)), newSource(t, setup(t, a))
	running(t, client)
	conn, err := client.Dial(serving(t, server), pilotID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	stream, err := healthpb.NewHealthClient(conn).Watch(within(t, 20*time.Second), &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	a.revoke(&capb.Revocation{Serial: server.current().Certificates[0].SerialNumber.Text(16), SpiffeId: pilotID.String()})
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream goes on")
	}
	if _, err := healthpb.NewHealthClient(conn).Check(within(t, 10*time.Second), &healthpb.HealthCheckRequest{}); err == nil {
		t.Error("a new connection came about")
	}
}

// TestCallersOfARevokedAuthority: they are cut off when their root is dropped, and not
// by a rotation that took its time.
func TestCallersOfARevokedAuthority(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	s := newSource(t, setup(t, a))
	running(t, s)
	addr, next := serving(t, s), newRoot(t)
	a.setBundle(a.root, next)
	proctest.Until(t, 10*time.Second, "both roots are trusted", func() bool { return len(s.currentBundle().X509Authorities()) == 2 })
	old, err := newCaller(t, addr, a.root, "old").call(t)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := newCaller(t, addr, next, "new").call(t)
	if err != nil {
		t.Fatal(err)
	}
	a.setBundle(next)
	proctest.Until(t, 10*time.Second, "one root is trusted", func() bool { return len(s.currentBundle().X509Authorities()) == 1 })
	if isClosed(old) {
		t.Error("a rotation ended a connection")
	}
	a.revoke(&capb.Revocation{Authority: keyID(a.root)})
	proctest.Until(t, time.Second, "the connection of the old root has ended", func() bool { return isClosed(old) })
	if isClosed(fresh) {
		t.Error("a connection of the new root has ended")
	}
}

// TestUntrusted: once an authority is revoked, the roots of this trust domain decide
// about its callers, and not about those of others.
func TestUntrusted(t *testing.T) {
	a := newAuthority(t, newRoot(t))
	s := newSource(t, setup(t, a))
	const here, there = "spiffe://cluster.local/ns/a/sa/b", "spiffe://other.example/writ/ratelimit"
	dropped := newRoot(t).Pair(t, pkitest.Leaf(here, time.Hour)).Leaf
	if s.untrusted([]*x509.Certificate{dropped}) {
		t.Error("no authority is revoked, and callers are cut off")
	}
	s.takeRevocations(t.Context(), &capb.RevocationList{Revocations: []*capb.Revocation{{Authority: keyID(newRoot(t))}}})
	for name, c := range map[string]struct {
		leaf *x509.Certificate
		want bool
	}{
		"of the root that is trusted": {a.root.Pair(t, pkitest.Leaf(here, time.Hour)).Leaf, false},
		"of a root that is dropped":   {dropped, true},
		"of another trust domain":     {pkitest.NewRoot(t, "other.example").Pair(t, pkitest.Leaf(there, time.Hour)).Leaf, false},
	} {
		if got := s.untrusted([]*x509.Certificate{c.leaf}); got != c.want {
			t.Errorf("a caller %s: untrusted %v", name, got)
		}
	}
}

// TestRevokedLookup: a serial number is found however it is written.
func TestRevokedLookup(t *testing.T) {
	root := newRoot(t)
	pair := root.Pair(t, pkitest.Leaf("spiffe://cluster.local/ns/a/sa/b", time.Hour))
	other := root.Pair(t, pkitest.Leaf("spiffe://cluster.local/ns/a/sa/c", time.Hour))
	nameless := root.Pair(t, pkitest.Leaf("", time.Hour)).Leaf
	for name, r := range map[string]*capb.Revocation{
		"by serial": serial(pair), "lower case": {Serial: pair.Leaf.SerialNumber.Text(16)},
		"by identity": {SpiffeId: "spiffe://cluster.local/ns/a/sa/b"},
	} {
		list := newRevoked(&capb.RevocationList{Revocations: []*capb.Revocation{r, {Authority: "00"}}})
		if list.check(pair.Leaf) == nil || list.check(other.Leaf) != nil || list.check(nameless) != nil {
			t.Errorf("%s: %v, %v", name, list.check(pair.Leaf), list.check(other.Leaf))
		}
	}
}
