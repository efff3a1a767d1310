package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/internal/service"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/descriptors"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/quota"
)

// clock is a time that tests move.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func runtime() *service.Runtime {
	return &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: new(service.Health)}
}

// newServer makes a server at noon with its counters in process.
func newServer(t testing.TB) (*Server, *clock, *prometheus.Registry) {
	t.Helper()
	c := &clock{time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)}
	reg, store := prometheus.NewRegistry(), memory.New(0)
	return &Server{store: store, now: c.Now, metrics: newMetrics(reg, store)}, c, reg
}

func metric(t testing.TB, reg *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	series:
		for _, m := range f.GetMetric() {
			for i, l := range m.GetLabel() {
				if i < len(labels) && l.GetValue() != labels[i] {
					continue series
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}

func withQuotas(t testing.TB, s *Server, policies ...*configpb.QuotaPolicy) {
	t.Helper()
	byName := make(map[string]*configpb.QuotaPolicy)
	for _, p := range policies {
		byName[p.GetNamespace()+"/"+p.GetName()] = p
	}
	table, err := quota.New(byName, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.quotas.Store(table)
}

func policy(name string, observe bool, limits ...*configpb.Limit) *configpb.QuotaPolicy {
	return &configpb.QuotaPolicy{Name: name, Namespace: "default", Limits: limits, Observe: observe}
}

func per(requests uint32, every time.Duration) *configpb.Limit {
	return &configpb.Limit{Per: []string{"source.principal"}, Requests: requests, Every: durationpb.New(every)}
}

func quotaDesc(policy string, index int, caller string) *commonv3.RateLimitDescriptor {
	return desc("writ.policy", "default/"+policy, "writ.limit", fmt.Sprint(index), "source.principal", caller)
}

func desc(pairs ...string) *commonv3.RateLimitDescriptor {
	d := &commonv3.RateLimitDescriptor{}
	for i := 0; i < len(pairs); i += 2 {
		d.Entries = append(d.Entries, &commonv3.RateLimitDescriptor_Entry{Key: pairs[i], Value: pairs[i+1]})
	}
	return d
}

func ask(t testing.TB, s *Server, domain string, descs ...*commonv3.RateLimitDescriptor) *rlsv3.RateLimitResponse {
	t.Helper()
	resp, err := s.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: domain, Descriptors: descs})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// answer is a response in short: "OK" or "OVER", each descriptor, each header.
func answer(resp *rlsv3.RateLimitResponse) string {
	code := map[rlsv3.RateLimitResponse_Code]string{rlsv3.RateLimitResponse_OK: "OK", rlsv3.RateLimitResponse_OVER_LIMIT: "OVER"}
	var b strings.Builder
	b.WriteString(code[resp.GetOverallCode()])
	for _, st := range resp.GetStatuses() {
		fmt.Fprintf(&b, " | %s %d", code[st.GetCode()], st.GetLimitRemaining())
		if l := st.GetCurrentLimit(); l != nil {
			fmt.Fprintf(&b, " of %d/%s %s", l.GetRequestsPerUnit(), strings.ToLower(l.GetUnit().String()), st.GetDurationUntilReset().AsDuration())
		}
	}
	for _, h := range resp.GetResponseHeadersToAdd() {
		fmt.Fprintf(&b, "\n%s: %s", h.GetKey(), h.GetValue())
	}
	return b.String()
}

func wantAnswer(t *testing.T, what string, resp *rlsv3.RateLimitResponse, want string) {
	t.Helper()
	if diff := cmp.Diff(want, answer(resp)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestQuota(t *testing.T) {
	s, c, reg := newServer(t)
	withQuotas(t, s, policy("q", false, per(2, 10*time.Second)))
	wantAnswer(t, "first", ask(t, s, "writ", quotaDesc("q", 0, "ann")),
		"OK | OK 1 of 2/second 10s\nx-ratelimit-limit: 2, 2;w=10\nx-ratelimit-remaining: 1\nx-ratelimit-reset: 10")
	c.now = c.now.Add(4500 * time.Millisecond)
	ask(t, s, "writ", quotaDesc("q", 0, "ann"))
	resp := ask(t, s, "writ", quotaDesc("q", 0, "ann"))
	wantAnswer(t, "third", resp,
		"OVER | OVER 0 of 2/second 10s\nx-ratelimit-limit: 2, 2;w=10\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 10\n"+
			"retry-after: 6\nx-writ-denied-by: QuotaPolicy default/q limit 0")
	if got := string(resp.GetRawBody()); got != "quota exceeded\n" {
		t.Errorf("body %q", got)
	}
	if got := resp.GetDynamicMetadata().GetFields()["denied_by"].GetStringValue(); got != "QuotaPolicy default/q limit 0" {
		t.Errorf("dynamic metadata denied_by %q", got)
	}
	if resp := ask(t, s, "writ", quotaDesc("q", 0, "bob")); resp.GetOverallCode() != rlsv3.RateLimitResponse_OK || resp.GetDynamicMetadata() != nil {
		t.Errorf("another caller: %s", answer(resp))
	}
	c.now = c.now.Add(6 * time.Second)
	if resp := ask(t, s, "writ", quotaDesc("q", 0, "ann")); resp.GetOverallCode() != rlsv3.RateLimitResponse_OK {
		t.Errorf("after retry-after: %s", answer(resp))
	}
	for result, want := range map[string]float64{"ok": 4, "over_limit": 1, "observed": 0, "error": 0} {
		if got := metric(t, reg, "writ_ratelimit_decisions_total", result); got != want {
			t.Errorf("decisions_total{%s} is %v, want %v", result, got, want)
		}
	}
	if got := metric(t, reg, "writ_ratelimit_limit_decisions_total", "QuotaPolicy default/q limit 0", "over_limit"); got != 1 {
		t.Errorf("limit_decisions_total is %v, want 1", got)
	}
}

// TestRetryAfterIsAtLeastASecond: 0 would send callers straight back.
func TestRetryAfterIsAtLeastASecond(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, policy("q", false, per(1, 50*time.Millisecond)))
	ask(t, s, "writ", quotaDesc("q", 0, "ann"))
	wantAnswer(t, "a short window", ask(t, s, "writ", quotaDesc("q", 0, "ann")),
		"OVER | OVER 0 of 1/unknown 1s\nx-ratelimit-limit: 1, 1;w=1\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 1\n"+
			"retry-after: 1\nx-writ-denied-by: QuotaPolicy default/q limit 0")
}

func TestSeveralLimits(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, policy("q", false, per(10, time.Minute), per(2, time.Second)), policy("day", false, per(3, 24*time.Hour)))
	all := []*commonv3.RateLimitDescriptor{quotaDesc("q", 0, "a"), quotaDesc("q", 1, "a"), quotaDesc("day", 0, "a")}
	wantAnswer(t, "the tightest is described", ask(t, s, "writ", all...),
		"OK | OK 9 of 10/minute 1m0s | OK 1 of 2/second 1s | OK 2 of 3/day 24h0m0s\n"+
			"x-ratelimit-limit: 2, 2;w=1, 10;w=60, 3;w=86400\nx-ratelimit-remaining: 1\nx-ratelimit-reset: 1")
	ask(t, s, "writ", all...)
	for range 5 {
		wantAnswer(t, "the one that refuses is described, the others pay nothing", ask(t, s, "writ", all...),
			"OVER | OK 8 of 10/minute 1m0s | OVER 0 of 2/second 1s | OK 1 of 3/day 24h0m0s\n"+
				"x-ratelimit-limit: 2, 2;w=1, 10;w=60, 3;w=86400\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 1\n"+
				"retry-after: 1\nx-writ-denied-by: QuotaPolicy default/q limit 1")
	}
}

func TestObserve(t *testing.T) {
	s, _, reg := newServer(t)
	withQuotas(t, s, policy("watch", true, per(1, time.Minute)), policy("q", false, per(100, time.Minute)))
	for i := range 4 {
		resp := ask(t, s, "writ", quotaDesc("watch", 0, "a"), quotaDesc("q", 0, "a"))
		if resp.GetOverallCode() != rlsv3.RateLimitResponse_OK || resp.GetStatuses()[0].GetCode() != rlsv3.RateLimitResponse_OK {
			t.Errorf("request %d: %s", i, answer(resp))
		}
		if got := resp.GetDynamicMetadata().GetFields()["observed"].GetStringValue(); (got != "") != (i > 0) {
			t.Errorf("request %d: dynamic metadata observed %q", i, got)
		}
	}
	if got := metric(t, reg, "writ_ratelimit_limit_decisions_total", "QuotaPolicy default/watch limit 0", "observed"); got != 3 {
		t.Errorf("observed %v refusals, want 3", got)
	}
	if got := metric(t, reg, "writ_ratelimit_decisions_total", "observed"); got != 3 {
		t.Errorf("decisions_total{observed} is %v, want 3", got)
	}
}

func TestUnknownIsOpenAndCounted(t *testing.T) {
	s, _, reg := newServer(t)
	withQuotas(t, s, policy("q", false, per(1, time.Minute)))
	refund := quotaDesc("q", 0, "a")
	refund.IsNegativeHits = true
	for range 3 {
		wantAnswer(t, "unknown", ask(t, s, "writ", quotaDesc("gone", 0, "a"), quotaDesc("q", 7, "a"), desc("x", "y"), refund), "OK | OK 0 | OK 0 | OK 0 | OK 0")
	}
	if got := metric(t, reg, "writ_ratelimit_unmatched_total", "unknown_policy"); got != 9 {
		t.Errorf("unmatched_total is %v, want 9", got)
	}
	// A known limit beside an unknown one still holds.
	ask(t, s, "writ", quotaDesc("q", 0, "a"), quotaDesc("gone", 0, "a"))
	if resp := ask(t, s, "writ", quotaDesc("gone", 0, "a"), quotaDesc("q", 0, "a")); resp.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Errorf("beside an unknown one: %s", answer(resp))
	}
}

func TestHitsAddend(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, policy("q", false, per(10, time.Minute)))
	own := func(n uint64) *commonv3.RateLimitDescriptor {
		d := quotaDesc("q", 0, "a")
		d.HitsAddend = wrapperspb.UInt64(n)
		return d
	}
	for i, c := range []struct {
		hits uint32
		desc *commonv3.RateLimitDescriptor
		left uint32
		over bool
	}{
		{0, quotaDesc("q", 0, "a"), 9, false},
		{4, quotaDesc("q", 0, "a"), 5, false},
		{100, own(2), 3, false},
		{100, own(0), 3, false},
		{math.MaxUint32, quotaDesc("q", 0, "a"), 3, true},
		{1, own(math.MaxUint64), 3, true},
		{1, own(3), 0, false},
		{1, own(0), 0, true},
	} {
		resp, err := s.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "writ", Descriptors: []*commonv3.RateLimitDescriptor{c.desc}, HitsAddend: c.hits})
		if err != nil {
			t.Fatal(err)
		}
		if st := resp.GetStatuses()[0]; st.GetLimitRemaining() != c.left || (st.GetCode() == rlsv3.RateLimitResponse_OVER_LIMIT) != c.over {
			t.Errorf("%d: %s, want %d left, over %v", i, answer(resp), c.left, c.over)
		}
	}
}

func TestBadRequests(t *testing.T) {
	s, _, reg := newServer(t)
	many := make([]*commonv3.RateLimitDescriptor, maxDescriptors+1)
	for i := range many {
		many[i] = desc("k", "v")
	}
	for name, req := range map[string]*rlsv3.RateLimitRequest{
		"nothing":        {},
		"no domain":      {Descriptors: many[:1]},
		"no descriptors": {Domain: "writ"},
		"too many":       {Domain: "writ", Descriptors: many},
	} {
		if _, err := s.ShouldRateLimit(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := metric(t, reg, "writ_ratelimit_decisions_total", "error"); got != 4 {
		t.Errorf("decisions_total{error} is %v, want 4", got)
	}
	if _, err := s.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "writ", Descriptors: many[1:]}); err != nil {
		t.Errorf("as many descriptors as are allowed: %v", err)
	}
}

// failing is a store that fails, as no store here ever does.
type failing struct{ err error }

func (f failing) Decide(context.Context, time.Time, []limit.Use, []limit.Outcome) error { return f.err }

func TestStoreErrorsAreNotShown(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, policy("q", false, per(1, time.Minute)))
	s.store = failing{errors.New("redis://user:secret@10.0.0.1 says no")}
	req := &rlsv3.RateLimitRequest{Domain: "writ", Descriptors: []*commonv3.RateLimitDescriptor{quotaDesc("q", 0, "a")}}
	_, err := s.ShouldRateLimit(t.Context(), req)
	if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.store = failing{context.Canceled}
	if _, err := s.ShouldRateLimit(ctx, req); status.Code(err) != codes.Canceled {
		t.Errorf("a caller who left: %v", err)
	}
}

const dropIn = `
domain: shop
descriptors:
  - key: path
    value: /buy
    descriptors:
      - key: user
        rate_limit: {unit: minute, requests_per_unit: 2}
  - key: user
    rate_limit: {unit: second, requests_per_unit: 1, name: user}
  - key: user
    value: vip
    rate_limit: {unlimited: true, replaces: [{name: plan}]}
  - key: plan
    rate_limit: {unit: hour, requests_per_unit: 1, name: plan}
  - key: trial
    shadow_mode: true
    rate_limit: {unit: day, requests_per_unit: 1}
  - key: banned
    rate_limit: {unit: second, requests_per_unit: 0}
  - key: free
  - key: tokens
    quota_mode: true
    rate_limit: {unit: hour, requests_per_unit: 1}
  - key: credits
    quota_mode: true
    rate_limit: {unit: hour, requests_per_unit: 2}
`

// TestDropIn plays sequences whose answers follow from envoyproxy/ratelimit's
// code: every use is counted, refused or not, each descriptor by itself.
func TestDropIn(t *testing.T) {
	type step struct {
		after time.Duration
		descs []*commonv3.RateLimitDescriptor
		want  string
	}
	buy := desc("path", "/buy", "user", "ann")
	d := func(descs ...*commonv3.RateLimitDescriptor) []*commonv3.RateLimitDescriptor { return descs }
	for name, steps := range map[string][]step{
		"fixed window": {
			{15 * time.Second, d(buy), "OK | OK 1 of 2/minute 45s"},
			{30500 * time.Millisecond, d(buy), "OK | OK 0 of 2/minute 15s"},
			{0, d(buy), "OVER | OVER 0 of 2/minute 15s"},
			{0, d(desc("path", "/buy", "user", "bob")), "OK | OK 1 of 2/minute 15s"},
			{14500 * time.Millisecond, d(buy), "OK | OK 1 of 2/minute 1m0s"},
		},
		"each descriptor counts by itself": {
			{0, d(desc("user", "ann"), buy), "OK | OK 0 of 1/second 1s | OK 1 of 2/minute 1m0s"},
			{0, d(desc("user", "ann"), buy), "OVER | OVER 0 of 1/second 1s | OK 0 of 2/minute 1m0s"},
			{time.Second, d(desc("user", "ann"), buy), "OVER | OK 0 of 1/second 1s | OVER 0 of 2/minute 59s"},
		},
		"no rule and no domain": {
			{0, d(desc("free", "x"), desc("nothing", "x"), desc("path", "/buy")), "OK | OK 0 | OK 0 | OK 0"},
		},
		"unlimited and replaces": {
			{0, d(desc("plan", "x")), "OK | OK 0 of 1/hour 1h0m0s"},
			{0, d(desc("plan", "x"), desc("user", "vip")), "OK | OK 0 | OK 4294967295"},
			{0, d(desc("plan", "x"), desc("user", "ann")), "OVER | OVER 0 of 1/hour 1h0m0s | OK 0 of 1/second 1s"},
		},
		"shadow": {
			{0, d(desc("trial", "x")), "OK | OK 0 of 1/day 12h0m0s"},
			{0, d(desc("trial", "x")), "OK | OK 0 of 1/day 12h0m0s"},
		},
		"none may pass": {
			{0, d(desc("banned", "x")), "OVER | OVER 0 of 0/second 1s"},
		},
		"quota mode refuses only all together": {
			{0, d(desc("tokens", "x"), desc("credits", "x")), "OK | OK 0 of 1/hour 1h0m0s | OK 1 of 2/hour 1h0m0s"},
			{0, d(desc("tokens", "x"), desc("credits", "x")), "OK | OVER 0 of 1/hour 1h0m0s | OK 0 of 2/hour 1h0m0s"},
			{0, d(desc("tokens", "x"), desc("credits", "x")), "OVER | OVER 0 of 1/hour 1h0m0s | OVER 0 of 2/hour 1h0m0s"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, c, _ := newServer(t)
			withDescriptors(t, s, dropIn)
			for i, st := range steps {
				c.now = c.now.Add(st.after)
				wantAnswer(t, fmt.Sprint("step ", i), ask(t, s, "shop", st.descs...), st.want)
			}
		})
	}
	s, _, reg := newServer(t)
	withDescriptors(t, s, dropIn)
	wantAnswer(t, "unknown domain", ask(t, s, "nowhere", buy), "OK | OK 0")
	wantAnswer(t, "the mesh's domain, alone", ask(t, s, "writ", buy), "OK | OK 0")
	if got := metric(t, reg, "writ_ratelimit_unmatched_total", "unknown_domain"); got != 2 {
		t.Errorf("unmatched_total{unknown_domain} is %v", got)
	}
}

func withDescriptors(t testing.TB, s *Server, text string) {
	t.Helper()
	set := loadText(t, text)
	s.domains.Store(set)
}

func FuzzShouldRateLimit(f *testing.F) {
	s, _, _ := newServer(f)
	withQuotas(f, s, policy("q", false, per(2, time.Minute)), policy("watch", true, per(1, time.Second)))
	withDescriptors(f, s, dropIn)
	for _, req := range []*rlsv3.RateLimitRequest{
		{Domain: "writ", Descriptors: []*commonv3.RateLimitDescriptor{quotaDesc("q", 0, "a"), quotaDesc("watch", 0, "")}, HitsAddend: math.MaxUint32},
		{Domain: "shop", Descriptors: []*commonv3.RateLimitDescriptor{desc("path", "/buy", "user", "x"), desc("user", "vip")}},
		{Domain: "shop", Descriptors: []*commonv3.RateLimitDescriptor{{Limit: &commonv3.RateLimitDescriptor_RateLimitOverride{Unit: 99}}}},
	} {
		data, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		req := &rlsv3.RateLimitRequest{}
		if proto.Unmarshal(data, req) != nil {
			t.Skip()
		}
		resp, err := s.ShouldRateLimit(t.Context(), req)
		if err != nil {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("error %v", err)
			}
			return
		}
		if len(resp.GetStatuses()) != len(req.GetDescriptors()) {
			t.Errorf("%d statuses for %d descriptors", len(resp.GetStatuses()), len(req.GetDescriptors()))
		}
		over := false
		for _, st := range resp.GetStatuses() {
			over = over || st.GetCode() == rlsv3.RateLimitResponse_OVER_LIMIT
		}
		if resp.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT && !over {
			t.Error("refused, and no descriptor says why")
		}
		if _, err := proto.Marshal(resp); err != nil {
			t.Errorf("the answer cannot be sent: %v", err)
		}
	})
}

func loadText(t testing.TB, text string) *descriptors.Set {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, dir+"/d.yaml", text)
	set, err := descriptors.Load(dir, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func BenchmarkShouldRateLimit(b *testing.B) {
	s, _, _ := newServer(b)
	s.now = time.Now
	withQuotas(b, s, policy("q", false, per(math.MaxUint32, time.Minute)))
	req := &rlsv3.RateLimitRequest{Domain: "writ", Descriptors: []*commonv3.RateLimitDescriptor{quotaDesc("q", 0, "cluster.local/ns/default/sa/caller")}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.ShouldRateLimit(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}
