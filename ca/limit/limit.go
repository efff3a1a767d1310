// Package limit bounds what each caller of the authority may ask, so that one bad
// node cannot starve the others: a node agent or a service by its SPIFFE ID, a
// workload by its identity and its node, and who has no certificate yet by his
// address. Each has a token bucket; a caller also has a bound of the calls and of
// the streams that he has under way. Who is over gets RESOURCE_EXHAUSTED and the
// time after which he is welcome again.
//
// It stands behind the check of who may call what: callers are who they say. TLS
// handshakes come before it and are not counted.
package limit

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/writ-mesh/writ/internal/rpc"
)

const (
	// maxBuckets bounds each table: 10,000 nodes, and 10,000 addresses of strangers.
	maxBuckets = 10_000
	// maxIdentities bounds the table of identities; a node that asks for ever new
	// ones is still held to its own bucket.
	maxIdentities = 50_000
	// crowded is how long who has too much under way is told to wait: about as long
	// as a slow commit takes.
	crowded = 200 * time.Millisecond
	// warnEvery is how often the log speaks of one caller.
	warnEvery = time.Minute
	// maxID is the longest identity that is looked at, that of csr.MaxIDSize; longer
	// ones are refused further on.
	maxID = 2048
)

// bound is which limit refused a request, the label of the metric.
type bound string

const (
	byRate     bound = "caller_rate"
	byCalls    bound = "caller_calls"
	byStreams  bound = "caller_streams"
	byIdentity bound = "identity_rate"
	byAddress  bound = "join_rate"
	byTotal    bound = "join_total_rate"

	byVisitor       bound = "visitor_rate"
	byTotalVisitors bound = "visitor_total_rate"
)

func bounds() []bound {
	return []bound{byRate, byCalls, byStreams, byIdentity, byAddress, byTotal, byVisitor, byTotalVisitors}
}

// Options are what a Limiter needs besides its numbers.
type Options struct {
	// Now is the clock.
	Now func() time.Time
	Log *slog.Logger
	// Metrics registers what is counted; nobody is named there.
	Metrics prometheus.Registerer
	// Refused hears of each refusal by its full method name; nil for nobody.
	Refused func(method string)
}

// Limiter holds callers to a Config. It is safe for concurrent use.
type Limiter struct {
	cfg     Config
	o       Options
	refused *prometheus.CounterVec

	mu         sync.Mutex
	callers    *table
	identities *table
	// joining are strangers over gRPC, visitors those over HTTP.
	joining, visitors *strangers
}

// strangers are who has no certificate: each by his address, and all together.
type strangers struct {
	addresses *table
	total     rate
	all       *bucket
	// each and every are the limits that refuse.
	each, every bound
}

func newStrangers(c Config, now time.Time, each, every bound) *strangers {
	return &strangers{
		addresses: newTable(rate{float64(c.JoinRate), float64(c.JoinBurst)}, maxBuckets),
		total:     rate{float64(c.JoinTotalRate), float64(c.JoinTotalBurst)},
		all:       &bucket{left: float64(c.JoinTotalBurst), at: now}, each: each, every: every,
	}
}

// New returns a limiter with every bucket full. c has been validated.
func New(c Config, o Options) *Limiter {
	l := &Limiter{
		cfg: c, o: o,
		callers:    newTable(rate{float64(c.CallerRate), float64(c.CallerBurst)}, maxBuckets),
		identities: newTable(rate{float64(c.IdentityRate), float64(c.IdentityBurst)}, maxIdentities),
		joining:    newStrangers(c, o.Now(), byAddress, byTotal),
		visitors:   newStrangers(c, o.Now(), byVisitor, byTotalVisitors),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_ca_limited_total", Help: "Requests refused because their caller asked too much, by the limit that refused them.",
		}, []string{"limit"}),
	}
	for _, b := range bounds() {
		l.refused.WithLabelValues(string(b))
	}
	held := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "writ_ca_limit_buckets", Help: "Callers, identities and addresses whose requests are being counted.",
	}, l.held)
	o.Metrics.MustRegister(l.refused, held)
	return l
}

func (l *Limiter) held() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return float64(len(l.callers.buckets) + len(l.identities.buckets) + len(l.joining.addresses.buckets) + len(l.visitors.addresses.buckets))
}

// Unary bounds calls.
func (l *Limiter) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	done, err := l.begin(ctx, info.FullMethod, req, false)
	if err != nil {
		return nil, err
	}
	defer done()
	return h(ctx, req)
}

// Stream bounds streams: their opening counts as a request.
func (l *Limiter) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	done, err := l.begin(ss.Context(), info.FullMethod, nil, true)
	if err != nil {
		return err
	}
	defer done()
	return h(srv, ss)
}

// begin lets a request in, until done is called, or refuses it.
func (l *Limiter) begin(ctx context.Context, method string, req any, stream bool) (done func(), err error) {
	caller := rpc.CallerFrom(ctx)
	now := l.o.Now()
	var b *bucket
	var over bound
	var wait time.Duration
	var name string
	l.mu.Lock()
	if caller.ID.IsZero() {
		name = address(ctx)
		b, over, wait = l.joining.take(name, now)
		done = func() {}
	} else {
		name = caller.ID.String()
		b, over, wait = l.known(name, req, stream, now)
		done = func() { l.end(b, stream) }
	}
	warn := b.warn(over, now)
	l.mu.Unlock()
	if over == "" {
		return done, nil
	}
	l.tell(ctx, name, method, over, wait, warn)
	return nil, exhausted(wait, "too many requests (limit %s); try again in %s", over, wait.Round(time.Millisecond))
}

// warn tells whether the log is to speak of a refusal. Limiter.mu is held.
func (b *bucket) warn(over bound, now time.Time) bool {
	warn := over != "" && now.Sub(b.warned).Abs() >= warnEvery
	if warn {
		b.warned = now
	}
	return warn
}

// tell counts a refusal, and logs it if warn says so.
func (l *Limiter) tell(ctx context.Context, name, method string, over bound, wait time.Duration, warn bool) {
	l.refused.WithLabelValues(string(over)).Inc()
	if l.o.Refused != nil {
		l.o.Refused(method)
	}
	if warn {
		l.o.Log.WarnContext(ctx, "a caller asks too much and is told to wait; further refusals of the next minute are only counted",
			slog.String("caller", name), slog.String("method", method), slog.String("limit", string(over)), slog.Duration("wait", wait))
	}
}

// known takes a request of a caller with a certificate: nothing is taken from any
// bucket unless all bounds allow it. What a node asks for its workloads is counted
// apart from what it asks for itself, so that they do not cost it its own
// certificate. mu is held.
func (l *Limiter) known(name string, req any, stream bool, now time.Time) (b *bucket, over bound, wait time.Duration) {
	subject, workload := subject(name, req)
	if workload {
		name += " for workloads"
	}
	b = l.callers.get(name, now)
	switch {
	case stream && b.streams >= l.cfg.CallerStreams:
		return b, byStreams, crowded
	case !stream && b.calls >= l.cfg.CallerCalls:
		return b, byCalls, crowded
	}
	if wait := b.wait(l.callers.rate, now); wait > 0 {
		return b, byRate, wait
	}
	if subject != "" {
		id := l.identities.get(subject, now)
		if wait := id.wait(l.identities.rate, now); wait > 0 {
			return b, byIdentity, wait
		}
		id.left--
	}
	b.left--
	if stream {
		b.streams++
	} else {
		b.calls++
	}
	l.callers.busy(b)
	return b, "", 0
}

func (l *Limiter) end(b *bucket, stream bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stream {
		b.streams--
	} else {
		b.calls--
	}
	l.callers.busy(b)
}

// take takes a request of a stranger. Limiter.mu is held.
func (s *strangers) take(addr string, now time.Time) (b *bucket, over bound, wait time.Duration) {
	b = s.addresses.get(addr, now)
	if wait := b.wait(s.addresses.rate, now); wait > 0 {
		return b, s.each, wait
	}
	s.all.fill(s.total, now)
	if wait := s.all.wait(s.total, now); wait > 0 {
		return b, s.every, wait
	}
	b.left--
	s.all.left--
	return b, "", 0
}

// subject tells whether a request is for somebody else than the caller, and gives
// the key of that identity; empty for none that there could be.
func subject(caller string, req any) (key string, other bool) {
	r, ok := req.(interface{ GetSpiffeId() string })
	if !ok {
		return "", false
	}
	if r.GetSpiffeId() == "" || len(r.GetSpiffeId()) > maxID {
		return "", true
	}
	// Of one size, whatever was asked for.
	sum := sha256.Sum256([]byte(caller + " " + r.GetSpiffeId()))
	return string(sum[:]), true
}

// address is where a call comes from: an IPv4 address, the first 64 bits of an
// IPv6 address, which one machine may have all of (RFC 4291 section 2.5.4), or one
// name for all who come over a unix socket.
func address(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return addressOf(p.Addr)
	}
	return "unknown"
}

func addressOf(a net.Addr) string {
	if a == nil {
		return "unknown"
	}
	if a.Network() == "unix" {
		return "unix"
	}
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return "unknown"
	}
	host, _, _ = strings.Cut(host, "%")
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "unknown"
	}
	ip = ip.Unmap()
	if ip.Is6() {
		if prefix, err := ip.Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return ip.String()
}
