package limit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// clock is a time that a test moves.
type clock struct{ now time.Time }

type fixture struct {
	*Limiter
	t       *testing.T
	clock   *clock
	log     *strings.Builder
	metrics *prometheus.Registry
	heard   map[string]int
}

func newFixture(t *testing.T, c Config) *fixture {
	t.Helper()
	f := &fixture{t: t, clock: &clock{time.Unix(1_700_000_000, 0)}, log: new(strings.Builder), metrics: prometheus.NewRegistry(), heard: map[string]int{}}
	f.Limiter = New(c, Options{
		Now: func() time.Time { return f.clock.now }, Log: slog.New(slog.NewTextHandler(f.log, nil)), Metrics: f.metrics,
		Refused: func(method string) { f.heard[method]++ },
	})
	return f
}

// small is a configuration whose ends are near.
func small() Config {
	return Config{
		CallerRate: 10, CallerBurst: 20, CallerCalls: 2, CallerStreams: 3, IdentityRate: 5, IdentityBurst: 10,
		JoinRate: 1, JoinBurst: 4, JoinTotalRate: 2, JoinTotalBurst: 6,
	}
}

func (f *fixture) node(name string) context.Context {
	u, err := url.Parse("spiffe://example.org/writ/node/" + name)
	if err != nil {
		f.t.Fatal(err)
	}
	return peer.NewContext(f.t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{
		State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{u}}}},
	}})
}

func (f *fixture) from(addr string) context.Context {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		f.t.Fatal(err)
	}
	return peer.NewContext(f.t.Context(), &peer.Peer{Addr: a})
}

func ok(context.Context, any) (any, error) { return "answer", nil }

func (f *fixture) call(ctx context.Context, req any) error {
	_, err := f.Unary(ctx, req, &grpc.UnaryServerInfo{FullMethod: "/x/M"}, ok)
	return err
}

// passes says how many of n calls pass now.
func (f *fixture) passes(ctx context.Context, n int, req func(int) any) (passed int) {
	f.t.Helper()
	for i := range n {
		err := f.call(ctx, req(i))
		if err == nil {
			passed++
		} else if wait := rpc.RetryAfter(err); status.Code(err) != codes.ResourceExhausted || wait <= 0 || wait > maxWait {
			f.t.Fatalf("refused with %v, wait %s", err, wait)
		}
	}
	return passed
}

func own(int) any     { return &capb.RenewRequest{} }
func joining(int) any { return &capb.JoinRequest{} }

func reviews(int) any {
	return &capb.IssueRequest{SpiffeId: "spiffe://example.org/ns/default/sa/reviews"}
}

func others(i int) any {
	return &capb.IssueRequest{SpiffeId: fmt.Sprintf("spiffe://example.org/ns/default/sa/%d", i)}
}

func tokens(i int) any {
	return &capb.IssueJWTRequest{SpiffeId: "spiffe://example.org/ns/default/sa/reviews"}
}

// TestBadNodeHarmsNobodyElse: nor its own renewals.
func TestBadNodeHarmsNobodyElse(t *testing.T) {
	f := newFixture(t, small())
	if n := f.passes(f.node("bad"), 1000, others); n != 20 {
		t.Errorf("%d of a flood passed, want the burst of 20", n)
	}
	if n := f.passes(f.node("bad"), 5, own); n != 5 {
		t.Errorf("%d of 5 renewals of the flooding node itself passed", n)
	}
	for i := range 50 {
		if n := f.passes(f.node(fmt.Sprint("good", i)), 20, others); n != 20 {
			t.Errorf("%d of 20 of another node passed", n)
		}
	}
	f.clock.now = f.clock.now.Add(time.Second)
	if n := f.passes(f.node("bad"), 1000, others); n != 10 {
		t.Errorf("%d passed a second later, want the rate of 10", n)
	}
}

// TestBadWorkloadHarmsNoOther of its node; certificates and tokens count together.
func TestBadWorkloadHarmsNoOther(t *testing.T) {
	f := newFixture(t, small())
	if n := f.passes(f.node("n"), 6, reviews) + f.passes(f.node("n"), 100, tokens); n != 10 {
		t.Errorf("%d passed, want the burst of 10", n)
	}
	if n := f.passes(f.node("n"), 10, others); n != 10 {
		t.Errorf("%d of 10 of other workloads passed", n)
	}
	f.clock.now = f.clock.now.Add(time.Minute)
	if n := f.passes(f.node("m"), 5, reviews); n != 5 {
		t.Errorf("%d of 5 of the same identity on another node passed", n)
	}
}

func TestStrangers(t *testing.T) {
	f := newFixture(t, small())
	if n := f.passes(f.from("192.0.2.1:1"), 50, joining); n != 4 {
		t.Errorf("%d of one address passed, want 4", n)
	}
	if n := f.passes(f.from("192.0.2.1:2"), 1, joining); n != 0 {
		t.Error("another port is another stranger")
	}
	if n := f.passes(f.from("[2001:db8::1]:1"), 2, joining); n != 2 {
		t.Errorf("%d of another address passed, want 2", n)
	}
	if n := f.passes(f.from("[2001:db9::1]:1"), 50, joining); n != 0 {
		t.Errorf("%d passed beyond the bound of all, 6", n)
	}
	if n := f.passes(f.node("n"), 10, own); n != 10 {
		t.Error("strangers keep a node from renewing")
	}
	f.clock.now = f.clock.now.Add(time.Second)
	if n := f.passes(f.from("192.0.2.1:3"), 50, joining); n != 1 {
		t.Errorf("%d passed a second later, want 1", n)
	}
}

func TestAddresses(t *testing.T) {
	f := newFixture(t, small())
	for addr, want := range map[string]string{
		"192.0.2.1:5":              "192.0.2.1",
		"[::ffff:192.0.2.1]:5":     "192.0.2.1",
		"[2001:db8:1:2:3:4:5:6]:5": "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::1]:5": "2001:db8:1:2::/64",
		"[2001:db8:1:3::1]:5":      "2001:db8:1:3::/64",
	} {
		if got := address(f.from(addr)); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	unix := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.UnixAddr{Name: "@", Net: "unix"}})
	if got := address(unix) + address(t.Context()); got != "unixunknown" {
		t.Error(got)
	}
}

// TestUnderWay: what runs is bounded, and what has ended makes room.
func TestUnderWay(t *testing.T) {
	f := newFixture(t, small())
	ctx := f.node("n")
	handler := func(context.Context, any) (any, error) {
		_, err := f.Unary(ctx, own(0), &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) {
			return nil, f.call(ctx, own(0)) // the third
		})
		return nil, err
	}
	_, err := f.Unary(ctx, own(0), &grpc.UnaryServerInfo{}, handler)
	if status.Code(err) != codes.ResourceExhausted || rpc.RetryAfter(err) != crowded {
		t.Errorf("a third call under way: %v", err)
	}
	if err := f.call(ctx, own(0)); err != nil {
		t.Errorf("after they have ended: %v", err)
	}
	ended := 0
	var open func(n int) error
	open = func(n int) error {
		return f.Stream(nil, stream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: "/x/S"}, func(any, grpc.ServerStream) error {
			defer func() { ended++ }()
			if n == 0 {
				return nil
			}
			return open(n - 1)
		})
	}
	if err := open(3); status.Code(err) != codes.ResourceExhausted || ended != 3 {
		t.Errorf("a fourth stream: %v after %d", err, ended)
	}
	if err := open(2); err != nil {
		t.Errorf("three streams: %v", err)
	}
}

type stream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // what a stream has
}

func (s stream) Context() context.Context { return s.ctx }

// TestPanicEndsACall: a handler that panics leaves nothing under way.
func TestPanicEndsACall(t *testing.T) {
	f := newFixture(t, small())
	ctx := f.node("n")
	for range 10 {
		func() {
			defer func() { _ = recover() }()
			_, _ = f.Unary(ctx, own(0), &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) { panic("x") })
		}()
	}
	if err := f.call(ctx, own(0)); err != nil {
		t.Error(err)
	}
}

// TestStartOf500Workloads: with the defaults a node that starts with 500 workloads,
// of one identity each or all of the same, waits for nothing, and one with 5,000
// that does as it is told has all within a minute, asking each about twice.
func TestStartOf500Workloads(t *testing.T) {
	for name, req := range map[string]func(int) any{"different": others, "the same": reviews} {
		if n := newFixture(t, Default()).passes(f500(t), 500, req); n != 500 {
			t.Errorf("%s: %d of 500 passed at once", name, n)
		}
	}
	f := newFixture(t, Default())
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the jitter of a test
	start, asked := f.clock.now, 0
	due := make(map[int]time.Time)
	for i := range 5000 {
		due[i] = start
	}
	for len(due) > 0 {
		for i, at := range due {
			if at.After(f.clock.now) {
				continue
			}
			asked++
			err := f.call(f.node("n"), others(i))
			if err == nil {
				delete(due, i)
				continue
			}
			due[i] = f.clock.now.Add(time.Duration(float64(rpc.RetryAfter(err)) * (1 + 0.5*random.Float64())))
		}
		f.clock.now = f.clock.now.Add(10 * time.Millisecond)
	}
	if took := f.clock.now.Sub(start); took < 39*time.Second || took > time.Minute {
		t.Errorf("it took %s", took)
	}
	if asked > 30_000 {
		t.Errorf("asked %d times for 5,000", asked)
	}
}

func f500(t *testing.T) context.Context { return newFixture(t, Default()).node("n") }

// TestClockJumps: back, nobody gets or loses anything and nobody waits for long;
// forward, buckets are full and no fuller.
func TestClockJumps(t *testing.T) {
	f := newFixture(t, small())
	f.passes(f.node("n"), 500, own)
	f.clock.now = f.clock.now.Add(-24 * time.Hour)
	if n := f.passes(f.node("n"), 100, own); n != 0 { // passes checks the waits
		t.Errorf("%d passed after the clock went back", n)
	}
	f.clock.now = f.clock.now.Add(time.Second)
	if n := f.passes(f.node("n"), 100, own); n != 10 {
		t.Errorf("%d passed in the second after, want 10", n)
	}
	f.clock.now = f.clock.now.Add(48 * time.Hour)
	if n := f.passes(f.node("n"), 100, own); n != 20 {
		t.Errorf("%d passed two days later, want the burst", n)
	}
}

// TestMemoryIsBounded: whoever asks for ever new identities, or comes from ever new
// addresses, does not fill the memory, and who has a call under way is not forgotten.
func TestMemoryIsBounded(t *testing.T) {
	f := newFixture(t, small())
	f.joining.addresses.max, f.callers.max, f.identities.max = 10, 10, 10
	ctx := f.node("n")
	_, err := f.Unary(ctx, own(0), &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) {
		for i := range 100 {
			f.clock.now = f.clock.now.Add(time.Second)
			_ = f.call(f.from(fmt.Sprintf("192.0.2.%d:1", i)), joining(0))
			_ = f.call(f.node(fmt.Sprint(i)), others(i))
		}
		_ = f.call(ctx, own(0))
		return f.Unary(ctx, own(0), &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) { return nil, f.call(ctx, own(0)) })
	})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("who had two calls under way was forgotten: %v", err)
	}
	for name, table := range map[string]*table{"addresses": f.joining.addresses, "callers": f.callers, "identities": f.identities} {
		if n := len(table.buckets); n > 10 || n != table.idle.Len() {
			t.Errorf("%s: %d buckets, %d idle", name, n, table.idle.Len())
		}
	}
	if f.held() > 30 {
		t.Errorf("%v buckets", f.held())
	}
	long := &capb.IssueRequest{SpiffeId: "spiffe://example.org/" + strings.Repeat("x", 1<<20)}
	if key, other := subject("n", long); key != "" || !other {
		t.Error("an ID of 1 MB has a bucket")
	}
}

// TestRefusalsAreSeen, without the log being flooded too and without names in the
// metrics.
func TestRefusalsAreSeen(t *testing.T) {
	f := newFixture(t, small())
	f.passes(f.node("bad"), 120, own)
	f.passes(f.from("192.0.2.1:1"), 14, joining)
	if n := strings.Count(f.log.String(), "asks too much"); n != 2 || !strings.Contains(f.log.String(), "spiffe://example.org/writ/node/bad") || !strings.Contains(f.log.String(), "caller=192.0.2.1") {
		t.Errorf("%d lines: %s", n, f.log)
	}
	if f.heard["/x/M"] != 110 {
		t.Errorf("heard of %v", f.heard)
	}
	if counted := f.counted(); len(counted) != len(bounds()) || counted["caller_rate"] != 100 || counted["join_rate"] != 10 {
		t.Errorf("counted %v", counted)
	}
	f.clock.now = f.clock.now.Add(time.Hour)
	f.passes(f.node("bad"), 120, own)
	if n := strings.Count(f.log.String(), "asks too much"); n != 3 {
		t.Errorf("%d lines an hour later", n)
	}
}

// counted gives the refusals by limit.
func (f *fixture) counted() map[string]float64 {
	f.t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	out := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				out[l.GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}

func TestValidate(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
	c := Default()
	c.CallerRate, c.JoinBurst = 0, 1<<30
	err := c.Validate()
	if err == nil || !strings.Contains(err.Error(), "limits.caller_rate: 0 is outside 1 to 100000") || !strings.Contains(err.Error(), "limits.join_burst") {
		t.Error(err)
	}
}

func BenchmarkUnary(b *testing.B) {
	l := New(Config{CallerRate: maxRate, CallerBurst: maxBurst, CallerCalls: 9, CallerStreams: 9, IdentityRate: maxRate, IdentityBurst: maxBurst, JoinRate: 1, JoinBurst: 1, JoinTotalRate: 1, JoinTotalBurst: 1},
		Options{Now: time.Now, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	u, err := url.Parse("spiffe://example.org/writ/node/n")
	if err != nil {
		b.Fatal(err)
	}
	ctx := peer.NewContext(b.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{u}}}}}})
	req, info := reviews(0), &grpc.UnaryServerInfo{}
	for b.Loop() {
		_, _ = l.Unary(ctx, req, info, ok)
	}
}
