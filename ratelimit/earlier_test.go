package ratelimit

import (
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// edited is a service that keeps policies of default/q, whose contents are called by
// their fingerprints.
type edited struct {
	*Service
	t     *testing.T
	clock *clock
	reg   *prometheus.Registry
}

func (e *edited) metric(name string, labels ...string) float64 {
	e.t.Helper()
	return metric(e.t, e.reg, name, labels...)
}

func newEdited(t *testing.T) *edited {
	t.Helper()
	c := DefaultConfig()
	c.Pilot = "127.0.0.1:1"
	rt := runtime()
	s, err := New(c, rt)
	if err != nil {
		t.Fatal(err)
	}
	at := &clock{time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)}
	s.server.now = at.Now
	return &edited{s, t, at, rt.Metrics}
}

func (e *edited) edit(fingerprint string, limits ...*configpb.Limit) {
	e.t.Helper()
	p := policy("q", false, limits...)
	p.Fingerprint = fingerprint
	if err := e.apply(map[string]proto.Message{"default/q": p}); err != nil {
		e.t.Fatal(err)
	}
}

func (e *edited) ask(domain string, descs ...*commonv3.RateLimitDescriptor) *rlsv3.RateLimitResponse {
	e.t.Helper()
	return ask(e.t, e.server, domain, descs...)
}

func (e *edited) passes(descs ...*commonv3.RateLimitDescriptor) bool {
	e.t.Helper()
	return e.ask(configpb.QuotaDomain, descs...).GetOverallCode() == rlsv3.RateLimitResponse_OK
}

// TestContentsDecide: requests are counted by the limit that their routes go with, the
// same for all of them, and what is told of it names no content.
func TestContentsDecide(t *testing.T) {
	e := newEdited(t)
	e.edit("one", per(2, time.Hour), per(3, time.Hour))
	e.edit("two", per(4, time.Hour))
	one, two, other := quotaDesc("q@one", 0, "ann"), quotaDesc("q@two", 0, "ann"), quotaDesc("q@one", 1, "ann")
	wantAnswer(t, "by the newest", e.ask("writ", two), "OK | OK 3 of 4/hour 1h0m0s\nx-ratelimit-limit: 4, 4;w=3600\nx-ratelimit-remaining: 3\nx-ratelimit-reset: 3600")
	wantAnswer(t, "by the one before", e.ask("writ", one), "OK | OK 0 of 2/hour 1h0m0s\nx-ratelimit-limit: 2, 2;w=3600\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 3600")
	wantAnswer(t, "by the one before, used up", e.ask("writ", one),
		"OVER | OVER 0 of 2/hour 1h0m0s\nx-ratelimit-limit: 2, 2;w=3600\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 3600\nretry-after: 3600\nx-writ-denied-by: QuotaPolicy default/q limit 0")
	wantAnswer(t, "by the newest again", e.ask("writ", two), "OK | OK 1 of 4/hour 1h0m0s\nx-ratelimit-limit: 4, 4;w=3600\nx-ratelimit-remaining: 1\nx-ratelimit-reset: 3600")
	if !e.passes(other) || e.passes(quotaDesc("q@one", 0, "ann"), other) {
		t.Error("a limit that the newest has not")
	}

	const name = "default/q/0?source.principal=ann"
	if top := e.server.top.Top(e.clock.now, 9, func(string) bool { return true }); len(top) != 2 || top[0].Name != name || top[0].Hits != 5 || top[0].Refused != 2 {
		t.Errorf("%+v", top)
	}
	if c, err := e.server.find(name); err != nil || c.use.Limit.Requests() != 4 {
		t.Errorf("operators see %+v, %v", c, err)
	}
	if n := e.metric("writ_ratelimit_earlier_decisions_total"); n != 4 {
		t.Errorf("%v requests by what is replaced", n)
	}
	if n := e.metric("writ_ratelimit_policies_retired"); n != 1 {
		t.Errorf("%v contents are kept", n)
	}
	if n := e.metric("writ_ratelimit_limits"); n != 1 {
		t.Errorf("%v limits in force", n)
	}
	for name, want := range map[string]float64{"QuotaPolicy default/q limit 0": 3, "QuotaPolicy default/q limit 1": 2} {
		if n := e.metric("writ_ratelimit_limit_decisions_total", name, "ok"); n != want {
			t.Errorf("%s: %v", name, n)
		}
	}
	e.forget(e.clock.now.Add(retire - 1))
	if !e.passes(other) {
		t.Error("it decides for less than its time")
	}
	e.clock.now = e.clock.now.Add(retire)
	e.forget(e.clock.now)
	if e.metric("writ_ratelimit_policies_retired") != 0 || e.metric("writ_ratelimit_limit_decisions_total", "QuotaPolicy default/q limit 1", "ok") != 0 {
		t.Error("something is left of what decides no more")
	}
	if n := e.metric("writ_ratelimit_limit_decisions_total", "QuotaPolicy default/q limit 0", "ok"); n != 3 {
		t.Errorf("%v are left of what stays", n)
	}
}

// TestUnknownContents: where a policy says that nothing passes without having been counted,
// nothing does whose content is not known. Elsewhere the newest counts.
func TestUnknownContents(t *testing.T) {
	e := newEdited(t)
	e.edit("one", per(1, time.Hour))
	known, unknown, nowhere := quotaDesc("q@one", 0, "ann"), quotaDesc("q@two", 0, "ann"), quotaDesc("r@two", 0, "ann")
	for _, descs := range [][]*commonv3.RateLimitDescriptor{{unknown}, {nowhere}, {known, unknown}, {known, nowhere}, {quotaDesc("q@one", 1, "ann")}} {
		resp, err := e.server.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: configpb.QuotaClosedDomain, Descriptors: descs})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("closed, %v: %v, %v", descs, resp, err)
		}
	}
	wantAnswer(t, "closed and known: nothing was taken before", e.ask(configpb.QuotaClosedDomain, known),
		"OK | OK 0 of 1/hour 1h0m0s\nx-ratelimit-limit: 1, 1;w=3600\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 3600")
	if e.passes(unknown) {
		t.Error("an open policy whose content is not known is not counted by the newest")
	}
	if !e.passes(nowhere) {
		t.Error("an open policy that is not known at all refuses")
	}
	if n := e.metric("writ_ratelimit_unknown_contents_total"); n != 3 {
		t.Errorf("%v times a content was not known", n)
	}
	// Domains of files are none of these.
	files, _, _ := newServer(t)
	if _, err := files.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: configpb.QuotaClosedDomain, Descriptors: []*commonv3.RateLimitDescriptor{known}}); err != nil {
		t.Errorf("a service of its own: %v", err)
	}
}

// TestRestartCountsByTheNewest: after a restart only what is in force is known.
func TestRestartCountsByTheNewest(t *testing.T) {
	c := DefaultConfig()
	c.Pilot, c.State = "127.0.0.1:1", t.TempDir()
	open := func() *Service {
		s, err := New(c, runtime())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	for _, fingerprint := range []string{"one", "two"} {
		p := policy("q", false, per(2, time.Hour))
		p.Fingerprint = fingerprint
		if err := s.apply(map[string]proto.Message{"default/q": p}); err != nil {
			t.Fatal(err)
		}
	}
	s = open()
	for ref, code := range map[string]codes.Code{"q@two": codes.OK, "q@one": codes.Unavailable} {
		_, err := s.server.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: configpb.QuotaClosedDomain, Descriptors: []*commonv3.RateLimitDescriptor{quotaDesc(ref, 0, "ann")}})
		if status.Code(err) != code {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if resp := ask(t, s.server, "writ", quotaDesc("q@one", 0, "ann")); !strings.HasPrefix(answer(resp), "OK | OK 0 of 2") {
		t.Errorf("open: %s", answer(resp))
	}
}
