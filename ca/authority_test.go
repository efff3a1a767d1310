package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/ca/placement"
	"github.com/writ-mesh/writ/ca/profile"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
	"github.com/writ-mesh/writ/ca/signer"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// newAuthority makes the core with a clock of the test's.
func newAuthority(t testing.TB, store ledger.Store, now func() time.Time) *Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template, err := profile.Root(td, key.Public(), now(), now().Add(48*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := signer.SelfSign(t.Context(), template, key)
	if err != nil {
		t.Fatal(err)
	}
	sign, err := signer.New(t.Context(), []*x509.Certificate{cert}, key)
	if err != nil {
		t.Fatal(err)
	}
	jwt, err := jwtsvid.Open(t.Context(), jwtsvid.Config{
		Storage: jwtsvid.File(filepath.Join(t.TempDir(), jwtKeysFile)), Life: 24 * time.Hour, MaxTTL: time.Hour, Log: slog.New(slog.DiscardHandler),
	}, now())
	if err != nil {
		t.Fatal(err)
	}
	a := &Authority{
		jwt: jwt,
		td:  td, store: store, now: now,
		log: slog.New(slog.DiscardHandler), metrics: newMetrics(prometheus.NewRegistry()),
		life: lifetimes{workload: time.Hour, service: time.Hour, max: 24 * time.Hour, skew: 10 * time.Second, token: 10 * time.Minute},
	}
	a.keeper = newKeeper(DefaultConfig(), a)
	trust, err := newTrust(td, roots.First(roots.Authority{KeyID: root.KeyID(cert), Certificate: cert.Raw}), sign)
	if err != nil {
		t.Fatal(err)
	}
	a.replace(trust)
	a.keys = newJWTBundle(a, false, 24*time.Hour)
	if err := a.keys.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

func parsed(t testing.TB) csr.Request {
	t.Helper()
	_, der := request(t, "")
	req, err := csr.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// brokenStore cannot record.
type brokenStore struct {
	*ledgertest.Memory
	err error
}

func (s brokenStore) Commit(context.Context, ledger.Change) (uint64, error) { return 0, s.err }

func TestNothingIsIssuedWithoutRecord(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want codes.Code
	}{
		{fmt.Errorf("%w: disk full", ledger.ErrUnavailable), codes.Unavailable},
		{errors.New("other"), codes.Internal},
		{context.Canceled, codes.Canceled},
	} {
		a := newAuthority(t, brokenStore{ledgertest.NewMemory(), tc.err}, time.Now)
		o := order{kind: kindMint, id: spiffeid.RequireFromString(reviewsID), csr: parsed(t)}
		cert, err := a.issue(t.Context(), o)
		wantCode(t, err, tc.want)
		if cert != nil {
			t.Error("a certificate without a record")
		}
		if !errors.Is(err, tc.err) {
			t.Errorf("the log does not get the cause: %v", err)
		}
	}
}

func TestClockOutsideTheRootsTime(t *testing.T) {
	now := time.Now()
	a := newAuthority(t, ledgertest.NewMemory(), func() time.Time { return now })
	o := order{kind: kindMint, id: spiffeid.RequireFromString(reviewsID), csr: parsed(t)}
	begin := now
	for shift, want := range map[time.Duration]codes.Code{
		-time.Hour: codes.Unavailable, 0: codes.OK, 47 * time.Hour: codes.OK, 49 * time.Hour: codes.Unavailable,
	} {
		now = begin.Add(shift)
		cert, err := a.issue(t.Context(), o)
		wantCode(t, err, want)
		if err == nil && cert.NotAfter.After(a.trusted().signer.Issuer().NotAfter) {
			t.Error("a certificate outlives its issuer")
		}
	}
}

func TestTokenExpires(t *testing.T) {
	now := time.Now()
	a := newAuthority(t, ledgertest.NewMemory(), func() time.Time { return now })
	s := &server{a: a, joiner: tokenJoiner{a}, placed: placement.NewTable(nil)}
	resp, err := (&admin{a: a}).CreateJoinToken(t.Context(), &capb.CreateJoinTokenRequest{SpiffeId: nodeID})
	if err != nil {
		t.Fatal(err)
	}
	_, der := request(t, "")
	now = now.Add(10 * time.Minute)
	_, err = s.Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: resp.GetToken()}, Csr: der})
	wantCode(t, err, codes.PermissionDenied)
	now = now.Add(-time.Second)
	if _, err = s.Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: resp.GetToken()}, Csr: der}); err != nil {
		t.Fatal(err)
	}
}

// A connection that was made with a certificate which has expired since is told
// to connect anew.
func TestExpiredCaller(t *testing.T) {
	now := time.Now()
	a := newAuthority(t, ledgertest.NewMemory(), func() time.Time { return now })
	s := &server{a: a, placed: placement.NewTable(placement.Set{"n1": {spiffeid.RequireFromString(reviewsID): true}})}
	cert, err := a.issue(t.Context(), order{kind: kindMint, id: spiffeid.RequireFromString(nodeID), csr: parsed(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}}})
	_, der := request(t, "")
	for shift, want := range map[time.Duration]codes.Code{0: codes.OK, time.Hour: codes.Unauthenticated} {
		now = now.Add(shift)
		_, err := s.Renew(ctx, &capb.RenewRequest{Csr: der})
		wantCode(t, err, want)
		_, err = s.Issue(ctx, &capb.IssueRequest{SpiffeId: reviewsID, Csr: der})
		wantCode(t, err, want)
		now = now.Add(-shift)
	}
}

func TestMetrics(t *testing.T) {
	a := newAuthority(t, ledgertest.NewMemory(), time.Now)
	s := &server{a: a, joiner: tokenJoiner{a}}
	_, _ = s.Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: "x"}})
	o := order{kind: kindMint, id: spiffeid.RequireFromString(reviewsID), csr: parsed(t)}
	cert, err := a.issue(t.Context(), o)
	a.answer(t.Context(), o, time.Now(), cert, err)
	for labels, want := range map[[2]string]float64{{kindJoin, "denied"}: 1, {kindMint, "ok"}: 1, {kindMint, "denied"}: 0} {
		var m dto.Metric
		if err := a.metrics.issued.WithLabelValues(labels[0], labels[1]).Write(&m); err != nil || m.GetCounter().GetValue() != want {
			t.Errorf("%v: got %v, want %v", labels, m.GetCounter().GetValue(), want)
		}
	}
}

func TestEveryReasonHasACode(t *testing.T) {
	seen := make(map[codes.Code]reason)
	for _, r := range []reason{invalid, denied, stale, unavailable, gone, internal} {
		c := codeOf(r)
		if other, twice := seen[c]; c == codes.Unknown || twice {
			t.Errorf("%s has code %s, as %s", r, c, other)
		}
		seen[c] = r
		if got := status.Code(refuse(r, "x")); got != c {
			t.Errorf("%s: callers see %s, want %s", r, got, c)
		}
	}
	if reasonOf(errors.New("x")) != internal || codeOf("new") != codes.Unknown {
		t.Error("an unknown error is not internal")
	}
}

// The cause of a refusal is for the log only.
func TestCauseStaysInside(t *testing.T) {
	err := refuse(internal, "see the log").because(errors.New("secret"))
	if m := status.Convert(err).Message(); m != "see the log" || err.Error() != "see the log: secret" {
		t.Fatalf("the caller sees %q, the log %q", m, err)
	}
}

// reportCPU reports the processor time of this process for each operation, which
// a busy neighbour disturbs less than the time on the wall.
func reportCPU(b *testing.B) func() {
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64((used()-before).Microseconds())/float64(b.N), "cpu-us/op") }
}

// BenchmarkIssue measures an issuance without its transport: from the bytes of
// the request to a certificate in the ledger, on disk. BenchmarkFloor beside it
// does what cannot be avoided.
func BenchmarkIssue(b *testing.B) {
	store, err := filelog.Open(filepath.Join(b.TempDir(), "l"), filelog.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	benchmarkIssue(b, store)
}

// BenchmarkIssueMemory is BenchmarkIssue without the disk.
func BenchmarkIssueMemory(b *testing.B) { benchmarkIssue(b, ledgertest.NewMemory()) }

func benchmarkIssue(b *testing.B, store ledger.Store) {
	a := newAuthority(b, store, time.Now)
	_, der := request(b, "")
	id := spiffeid.RequireFromString(reviewsID)
	b.SetParallelism(8) // times GOMAXPROCS in flight
	b.ResetTimer()
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			req, err := csr.Parse(der)
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := a.issue(b.Context(), order{kind: kindIssue, id: id, csr: req, requester: nodeID}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkFloor parses and verifies the request and signs, by the standard
// library alone.
func BenchmarkFloor(b *testing.B) {
	a := newAuthority(b, ledgertest.NewMemory(), time.Now)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	_, der := request(b, "")
	id := spiffeid.RequireFromString(reviewsID)
	now := time.Now()
	issuerTemplate := *a.trusted().signer.Issuer()
	issuerTemplate.PublicKey = key.Public()
	b.SetParallelism(8)
	b.ResetTimer()
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			req, err := x509.ParseCertificateRequest(der)
			if err == nil {
				err = req.CheckSignature()
			}
			if err != nil {
				b.Error(err)
				return
			}
			template, err := profile.Leaf(id, req.PublicKey, now, now.Add(time.Hour))
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := x509.CreateCertificate(rand.Reader, template, &issuerTemplate, req.PublicKey, key); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkMint is a whole call over the admin socket, the client's share of the
// processor time included.
func BenchmarkMint(b *testing.B) {
	h := start(b, func(c *Config) { c.Listen = "" })
	client := h.admin()
	_, der := request(b, "")
	b.SetParallelism(8)
	b.ResetTimer()
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := client.Mint(b.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: der}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
