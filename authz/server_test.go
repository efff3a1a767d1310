package authz

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/authz/token"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/refusal"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// mesh is a server as in the mesh, called without a network.
type mesh struct {
	*server
	log *syncBuffer
	reg *prometheus.Registry
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newMesh(t testing.TB, change ...func(*Config)) *mesh {
	t.Helper()
	c := DefaultConfig()
	c.Decision.UnknownPolicyWait = 0
	c.Decision.Timeout = config.Duration(time.Minute) // a busy machine is no failure
	for _, f := range change {
		f(&c)
	}
	st, err := openStore(c.State)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{log: &syncBuffer{}, reg: prometheus.NewRegistry()}
	log := slog.New(slog.NewJSONHandler(m.log, nil))
	metrics := newMetrics(m.reg)
	fetcher := token.NewFetcher(token.FetcherOptions{Store: st, Log: log, Fetched: metrics.fetched})
	t.Cleanup(fetcher.Close)
	asks := newEvaluator(c.Decision, c.DecisionLog.redactor(), m.reg)
	elsewhere := newRemotes(t.Context(), st.dir, c.credentials(), rego.Options{}, asks.decideAhead, newBundleMetrics(m.reg), log)
	t.Cleanup(elsewhere.close)
	ps := newPolicies(rego.Options{}, c.Decision.Retire.D(), fetcher, st, elsewhere, log, metrics.swapped)
	m.server = &server{
		policies: ps, decision: c.Decision, asks: asks, metrics: metrics, log: log,
		tokens: &tokens{fetcher: fetcher, metrics: metrics, leeway: time.Minute},
		record: decisionLog{what: c.Decision.Log, redact: c.DecisionLog.redactor(), add: toLog(log)},
	}
	return m
}

// policy makes a RegoPolicy from the body of a module.
func regoPolicy(name, body string) *configpb.RegoPolicy {
	namespace, short, _ := strings.Cut(name, "/")
	return &configpb.RegoPolicy{Namespace: namespace, Name: short, Module: "package p\n" + body, Query: "data.p.allow", Source: "policies.yaml:7"}
}

func (m *mesh) apply(t testing.TB, list ...*configpb.RegoPolicy) {
	t.Helper()
	all := make(map[string]*configpb.RegoPolicy)
	for _, p := range list {
		all[p.GetNamespace()+"/"+p.GetName()] = p
	}
	if err := m.policies.applyPolicies(context.Background(), all); err != nil {
		t.Fatal(err)
	}
}

// check asks for the named policies.
func (m *mesh) check(t testing.TB, names string, change ...func(*authv3.AttributeContext)) *authv3.CheckResponse {
	t.Helper()
	resp, err := m.Check(context.Background(), checkRequest(names, change...))
	if err != nil {
		t.Fatalf("a check never fails as a call: %v", err)
	}
	return resp
}

func checkRequest(names string, change ...func(*authv3.AttributeContext)) *authv3.CheckRequest {
	a := &authv3.AttributeContext{
		Source:            &authv3.AttributeContext_Peer{Principal: "spiffe://cluster.local/ns/default/sa/reviews"},
		Destination:       &authv3.AttributeContext_Peer{Principal: "spiffe://cluster.local/ns/default/sa/ratings"},
		ContextExtensions: map[string]string{PoliciesKey: names},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: "GET", Path: "/ratings/7?access=secret", Headers: map[string]string{"x-role": "reader"},
		}},
	}
	for _, f := range change {
		f(a)
	}
	return &authv3.CheckRequest{Attributes: a}
}

func withHeader(name, value string) func(*authv3.AttributeContext) {
	return func(a *authv3.AttributeContext) { a.Request.Http.Headers[name] = value }
}

func allowed(r *authv3.CheckResponse) bool { return r.GetStatus().GetCode() == int32(codes.OK) }

func deniedBy(r *authv3.CheckResponse) string {
	for _, h := range r.GetDeniedResponse().GetHeaders() {
		if h.GetHeader().GetKey() == DeniedByHeader {
			return h.GetHeader().GetValue()
		}
	}
	return ""
}

func TestCheckDecides(t *testing.T) {
	m := newMesh(t)
	observed := regoPolicy("default/observed", `allow := {"allowed": false, "reason": "would not"}`)
	observed.Observe = true
	m.apply(t,
		regoPolicy("default/yes", "allow := true"),
		regoPolicy("default/no", "allow := false"),
		regoPolicy("default/office", `allow if input.parsed_path[0] == "ratings"`),
		regoPolicy("default/other", `allow if input.parsed_path[0] == "other"`),
		regoPolicy("default/string", `allow := "true"`),
		regoPolicy("default/conflict", "allow := x if x := true\nallow := x if x := false"),
		regoPolicy("default/loop", "allow if {\n some a in numbers.range(1, 5000)\n some b in numbers.range(1, 5000)\n some c in numbers.range(1, 5000)\n a*b*c < 0\n}"),
		observed)
	for name, c := range map[string]struct {
		policies string
		change   func(*authv3.AttributeContext)
		allow    bool
		by       string
		status   int
		reason   string
	}{
		"allow":                 {policies: "default/yes", allow: true},
		"deny":                  {policies: "default/no", by: "default/no", status: 403},
		"rule holds":            {policies: "default/office", allow: true},
		"rule does not hold":    {policies: "default/other", by: "default/other", status: 403, reason: "undefined decision"},
		"all must allow":        {policies: "default/yes,default/office,default/no", by: "default/no", status: 403},
		"spaces":                {policies: "default/yes, default/office", allow: true},
		"observed only":         {policies: "default/observed", allow: true},
		"observed and enforced": {policies: "default/observed,default/no", by: "default/no", status: 403},
		"unknown":               {policies: "default/nobody", by: "default/nobody", status: 403, reason: "not known"},
		"one unknown":           {policies: "default/yes,default/nobody", by: "default/nobody", status: 403, reason: "not known"},
		"an empty name":         {policies: "default/yes,", status: 403, reason: "not known"},
		"none":                  {policies: "", status: 403, reason: "names 0 policies"},
		"too many":              {policies: strings.Repeat("default/yes,", 100) + "default/yes", status: 403, reason: "101 policies"},
		"not a boolean":         {policies: "default/string", by: "default/string", status: 403, reason: "a string instead of"},
		"evaluation error":      {policies: "default/conflict", by: "default/conflict", status: 403, reason: "conflict"},
		"endless":               {policies: "default/loop", by: "default/loop", status: 403, reason: "too long"},
		"malformed path":        {policies: "default/yes", change: func(a *authv3.AttributeContext) { a.Request.Http.Path = "/%zz" }, by: "default/yes", status: 400, reason: "malformed"},
		"malformed body": {policies: "default/yes", change: func(a *authv3.AttributeContext) {
			a.Request.Http.Headers["content-type"] = "application/json"
			a.Request.Http.Body = "{"
		}, by: "default/yes", status: 400, reason: "malformed"},
		"large body":             {policies: "default/yes", change: func(a *authv3.AttributeContext) { a.Request.Http.Body = strings.Repeat("a", 1<<20+1) }, by: "default/yes", status: 413, reason: "bytes"},
		"large header":           {policies: "default/yes", change: withHeader("a", strings.Repeat("a", 1<<20)), by: "default/yes", status: 413, reason: "bytes"},
		"no request at all":      {policies: "default/office", change: func(a *authv3.AttributeContext) { a.Request = nil }, by: "default/office", status: 403},
		"no source, destination": {policies: "default/yes", change: func(a *authv3.AttributeContext) { a.Source, a.Destination = nil, nil }, allow: true},
	} {
		t.Run(name, func(t *testing.T) {
			if c.change == nil {
				c.change = func(*authv3.AttributeContext) {}
			}
			m.decision.Timeout = config.Duration(time.Minute)
			if c.policies == "default/loop" {
				m.decision.Timeout = config.Duration(300 * time.Millisecond)
			}
			r := m.check(t, c.policies, c.change)
			if allowed(r) != c.allow {
				t.Fatalf("allowed %v: %v", allowed(r), r)
			}
			if c.allow {
				if r.GetOkResponse() == nil || r.GetDeniedResponse() != nil {
					t.Error("the answer has another form than the decision")
				}
				return
			}
			want := "RegoPolicy " + c.by
			if c.by == "" {
				want = ""
			}
			if got := deniedBy(r); got != want {
				t.Errorf("denied by %q, want %q", got, want)
			}
			if got := int(r.GetDeniedResponse().GetStatus().GetCode()); got != c.status {
				t.Errorf("status %d, want %d", got, c.status)
			}
			if got := r.GetDynamicMetadata().GetFields()[metadataReason].GetStringValue(); !strings.Contains(got, c.reason) {
				t.Errorf("reason %q, want %q", got, c.reason)
			}
			if body := r.GetDeniedResponse().GetBody(); strings.Contains(body, "default/") {
				t.Errorf("the body names the policy: %s", body)
			}
		})
	}
	r := m.check(t, "default/observed")
	if got := r.GetDynamicMetadata().GetFields()[metadataObserved].GetStringValue(); got != "default/observed" {
		t.Errorf("observed: %q", got)
	}
	if n := sample(t, m.reg, "writ_authz_observed_refusals_total", "default/observed"); n != 3 {
		t.Errorf("%v observed refusals", n)
	}
}

func TestCheckNilRequest(t *testing.T) {
	m := newMesh(t)
	for _, req := range []*authv3.CheckRequest{nil, {}} {
		r, err := m.Check(context.Background(), req)
		if err != nil || allowed(r) {
			t.Errorf("%v, %v", r, err)
		}
	}
}

func TestCheckStructured(t *testing.T) {
	m := newMesh(t)
	m.apply(t,
		regoPolicy("default/a", `allow := {"allowed": true, "headers": {"x-user": "john", "x-list": ["1", "2"]}, "response_headers_to_add": {"x-out": "o"},
			"request_headers_to_remove": ["authorization"], "query_parameters_to_set": {"q": "1"}, "query_parameters_to_remove": ["access"],
			"dynamic_metadata": {"tier": "gold", "decision_id": "forged", "writ_denied_by": "forged"}}`),
		regoPolicy("default/b", `allow := {"allowed": true, "headers": {"x-more": "m"}}`),
		regoPolicy("default/refuse", `allow := {"allowed": false, "http_status": 429, "body": "later", "headers": {"retry-after": "7"}, "reason": "too often"}`),
		regoPolicy("default/reason", `allow := {"allowed": false, "reason": "closed on Sundays"}`))
	r := m.check(t, "default/a,default/b")
	ok := r.GetOkResponse()
	var got []string
	for _, h := range ok.GetHeaders() {
		got = append(got, fmt.Sprint(h.GetHeader().GetKey(), "=", h.GetHeader().GetValue(), " ", h.GetAppendAction()))
	}
	want := []string{"x-list=1 OVERWRITE_IF_EXISTS_OR_ADD", "x-list=2 APPEND_IF_EXISTS_OR_ADD", "x-user=john OVERWRITE_IF_EXISTS_OR_ADD", "x-more=m OVERWRITE_IF_EXISTS_OR_ADD"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if ok.GetHeadersToRemove()[0] != "authorization" || ok.GetResponseHeadersToAdd()[0].GetHeader().GetKey() != "x-out" ||
		ok.GetQueryParametersToSet()[0].GetKey() != "q" || ok.GetQueryParametersToRemove()[0] != "access" {
		t.Errorf("something is missing: %v", ok)
	}
	fields := r.GetDynamicMetadata().GetFields()
	if fields["tier"].GetStringValue() != "gold" || fields[metadataID].GetStringValue() == "forged" || fields[metadataDeniedBy] != nil {
		t.Errorf("metadata %v", fields)
	}
	r = m.check(t, "default/refuse")
	if d := r.GetDeniedResponse(); d.GetBody() != "later" || d.GetStatus().GetCode() != 429 || d.GetHeaders()[0].GetHeader().GetKey() != "retry-after" || deniedBy(r) != "RegoPolicy default/refuse" {
		t.Errorf("refusal %v", d)
	}
	for accept, want := range map[string]string{"": "application/problem+json", "*/*": "application/problem+json", "application/json": "application/problem+json", "text/html, image/png": refusal.HTML, "text/plain": refusal.Text, "image/png": refusal.Text} {
		d := m.check(t, "default/reason", withHeader("accept", accept)).GetDeniedResponse()
		if got := d.GetHeaders()[0].GetHeader().GetValue(); got != want || !strings.Contains(d.GetBody(), "closed on Sundays") {
			t.Errorf("accept %q: %s %s", accept, got, d.GetBody())
		}
		if want == "application/problem+json" && !json.Valid([]byte(d.GetBody())) {
			t.Errorf("no JSON: %s", d.GetBody())
		}
	}
	if d := m.check(t, "default/reason", withHeader("content-type", "application/grpc")).GetDeniedResponse(); d.GetBody() != "Forbidden: closed on Sundays" {
		t.Errorf("for gRPC: %q", d.GetBody())
	}
}

func TestApplyRefusesWhole(t *testing.T) {
	m := newMesh(t)
	m.apply(t, regoPolicy("default/a", "allow := true"))
	before := m.policies.current.Load()
	for name, bad := range map[string]struct {
		policy *configpb.RegoPolicy
		want   string
	}{
		"syntax":   {regoPolicy("default/b", "allow if {"), "RegoPolicy default/b (policies.yaml:7): default/b.rego:2: rego_parse_error"},
		"rule":     {regoPolicy("default/b", "alow := true"), "no such rule"},
		"network":  {regoPolicy("default/b", `allow if http.send({"method": "GET", "url": "http://127.0.0.1"})`), "undefined function http.send"},
		"nothing":  {&configpb.RegoPolicy{Namespace: "default", Name: "b", Query: "data.p.allow"}, "neither module nor bundle"},
		"remote":   {&configpb.RegoPolicy{Namespace: "default", Name: "b", Query: "data.p.allow", Bundle: &configpb.Bundle{Url: "ftp://example.com/b.tar.gz"}}, "want http://, https:// or oci://"},
		"no query": {&configpb.RegoPolicy{Namespace: "default", Name: "b", Module: "package p"}, "query"},
	} {
		err := m.policies.applyPolicies(context.Background(), map[string]*configpb.RegoPolicy{
			"default/a": regoPolicy("default/a", "allow := false"), "default/b": bad.policy,
		})
		if err == nil || !strings.Contains(err.Error(), bad.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v", name, err)
		}
		if m.policies.current.Load() != before || !allowed(m.check(t, "default/a")) {
			t.Fatalf("%s: the set before is not in force", name)
		}
	}
}

// An unchanged policy is not compiled again, and its counters go on.
func TestApplyKeepsUnchanged(t *testing.T) {
	m := newMesh(t)
	m.apply(t, regoPolicy("default/a", "allow := true"), regoPolicy("default/b", "allow := true"))
	m.check(t, "default/a")
	before := m.policies.current.Load()
	moved := regoPolicy("default/a", "allow := true")
	moved.Source = "policies.yaml:99"
	m.apply(t, moved, regoPolicy("default/b", "allow := false"))
	after := m.policies.current.Load()
	if before.policies["default/a"] != after.policies["default/a"] || before.policies["default/b"] == after.policies["default/b"] {
		t.Error("what was compiled is not what changed")
	}
	if before.revision == after.revision {
		t.Error("the revision is the same")
	}
	m.check(t, "default/a")
	if n := sample(t, m.reg, "writ_authz_policy_decisions_total", "default/a", resultAllow); n != 2 {
		t.Errorf("counted %v", n)
	}
}

func TestUnknownPolicyIsWaitedFor(t *testing.T) {
	m := newMesh(t, func(c *Config) {
		c.Decision.Timeout = DefaultConfig().Decision.Timeout
		c.Decision.UnknownPolicyWait = c.Decision.Timeout
	})
	synctest.Test(t, func(t *testing.T) {
		m.apply(t)
		go func() {
			time.Sleep(100 * time.Millisecond) // time of the bubble
			_ = m.policies.applyPolicies(context.Background(), map[string]*configpb.RegoPolicy{"default/a": regoPolicy("default/a", "allow := true")})
		}()
		start := time.Now()
		if !allowed(m.check(t, "default/a")) || time.Since(start) != 100*time.Millisecond {
			t.Errorf("not allowed after %v", time.Since(start))
		}
		start = time.Now()
		if allowed(m.check(t, "default/b")) || time.Since(start) > 800*time.Millisecond {
			t.Errorf("the wait took %v", time.Since(start))
		}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		start = time.Now()
		if r, _ := m.Check(ctx, checkRequest("default/b")); allowed(r) || time.Since(start) >= 50*time.Millisecond {
			t.Errorf("the answer comes %v after the question, too late for the caller", time.Since(start))
		}
	})
}

// No check sees two revisions: both policies of a set agree at every moment.
func TestSwapIsAtomic(t *testing.T) {
	m := newMesh(t, func(c *Config) {
		c.Decision.Log = logNone
	})
	set := func(role string) map[string]*configpb.RegoPolicy {
		rule := fmt.Sprintf("allow := {\"allowed\": true, \"headers\": {\"x-%%s\": %q}}", role)
		return map[string]*configpb.RegoPolicy{
			"default/a": regoPolicy("default/a", fmt.Sprintf(rule, "a")),
			"default/b": regoPolicy("default/b", fmt.Sprintf(rule, "b")),
		}
	}
	ctx := context.Background()
	if err := m.policies.applyPolicies(ctx, set("one")); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r := m.check(t, "default/a,default/b")
				h := r.GetOkResponse().GetHeaders()
				if len(h) != 2 || h[0].GetHeader().GetValue() != h[1].GetHeader().GetValue() {
					t.Errorf("one check saw two revisions: %v %v", h, r)
					return
				}
			}
		})
	}
	for i := range 60 {
		if err := m.policies.applyPolicies(ctx, set([]string{"one", "two"}[i%2])); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	all.Wait()
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	state := func(c *Config) { c.State = dir }
	first := newMesh(t, state)
	first.apply(t, regoPolicy("default/a", "allow := true"))
	if err := first.policies.applyIssuers(context.Background(), map[string]*configpb.TokenIssuer{"default/r/0": {Issuer: "i", Jwks: newIssuerKeys(t).jwks}}); err != nil {
		t.Fatal(err)
	}
	again := newMesh(t, state)
	if !again.policies.restore(context.Background()) || !allowed(again.check(t, "default/a")) {
		t.Fatal("after a restart the policy is not there")
	}
	if a, b := first.policies.current.Load(), again.policies.current.Load(); a.revision != b.revision || len(b.issuers) != 1 {
		t.Errorf("revision %s became %s", a.revision, b.revision)
	}
	for name, content := range map[string]string{"corrupt": "{", "future": `{"version": 2}`, "broken policy": `{"version": 1, "rego_policies": {"a/b": {"module": 1}}}`} {
		writeFile(t, dir+"/"+stateFile, content)
		m := newMesh(t, state)
		if m.policies.restore(context.Background()) || allowed(m.check(t, "default/a")) {
			t.Errorf("%s: restored", name)
		}
		if !strings.Contains(m.log.String(), "corrupt") {
			t.Errorf("%s: not reported: %s", name, m.log)
		}
		m.apply(t, regoPolicy("default/a", "allow := true"))
		if b := newMesh(t, state); !b.policies.restore(context.Background()) {
			t.Errorf("%s: a good set was not saved afterwards", name)
		}
	}
	empty := newMesh(t, func(c *Config) { c.State = t.TempDir() })
	if empty.policies.restore(context.Background()) {
		t.Error("restored from nothing")
	}
}

// What cannot be saved is in force all the same.
func TestStoreFull(t *testing.T) {
	m := newMesh(t, func(c *Config) { c.State = t.TempDir() })
	m.policies.store.dir += "/gone"
	m.apply(t, regoPolicy("default/a", "allow := true"))
	if !allowed(m.check(t, "default/a")) || !strings.Contains(m.log.String(), "not saved") {
		t.Errorf("log: %s", m.log)
	}
}

func TestDecisionLog(t *testing.T) {
	for what, want := range map[string]int{logAll: 2, logRefusals: 1, logNone: 0} {
		m := newMesh(t, func(c *Config) { c.Decision.Log = what })
		m.apply(t, regoPolicy("default/yes", "allow := true"), regoPolicy("default/no", `allow := {"allowed": false, "reason": "not today"}`))
		for _, p := range []string{"default/yes", "default/no"} {
			m.check(t, p, withHeader("authorization", "Bearer hidden-token"), withHeader("cookie", "hidden-cookie"), withHeader("x-request-id", "r1"),
				func(a *authv3.AttributeContext) { a.Request.Http.Body = "hidden-body" })
		}
		var got []map[string]any
		for line := range strings.Lines(m.log.String()) {
			var r map[string]any
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatal(err)
			}
			if r["msg"] == "decision" {
				got = append(got, r)
			}
		}
		if len(got) != want {
			t.Fatalf("%s: %d records, want %d", what, len(got), want)
		}
		if strings.Contains(m.log.String(), "hidden") || strings.Contains(m.log.String(), "secret") {
			t.Errorf("%s: the log has secrets: %s", what, m.log)
		}
		if want > 0 {
			r := got[want-1]
			for _, k := range []string{"time", "decision_id", "latency_us"} {
				if r[k] == nil {
					t.Errorf("no %s", k)
				}
				delete(r, k)
			}
			delete(r, "level")
			if diff := cmp.Diff(map[string]any{
				"msg": "decision", "revision": m.policies.current.Load().revision, "by": "authz", "decision": "refuse", "rule": "RegoPolicy default/no",
				"from": "spiffe://cluster.local/ns/default/sa/reviews", "to": "spiffe://cluster.local/ns/default/sa/ratings",
				"method": "GET", "path": "/ratings/7", "request_id": "r1", "reason": "not today",
			}, r); diff != "" {
				t.Error(diff)
			}
		}
	}
}

func TestNewID(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := newID()
		if len(id) != 36 || id[14] != '4' || !strings.Contains("89ab", id[19:20]) || strings.Count(id, "-") != 4 || seen[id] {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
	}
}

func TestMetrics(t *testing.T) {
	m := newMesh(t)
	m.apply(t, regoPolicy("default/yes", "allow := true"), regoPolicy("default/no", "allow := false"), regoPolicy("default/bad", `allow := 1`))
	for _, p := range []string{"default/yes", "default/no", "default/bad", "default/unknown"} {
		m.check(t, p)
	}
	for result, want := range map[string]float64{resultAllow: 1, resultDeny: 1, resultError: 2} {
		if got := sample(t, m.reg, "writ_authz_decisions_total", result); got != want {
			t.Errorf("%s: %v, want %v", result, got, want)
		}
	}
	if n := sample(t, m.reg, "writ_authz_revision_info", m.policies.current.Load().revision); n != 1 {
		t.Errorf("revision %v", n)
	}
	many := &policySet{policies: map[string]*policy{}}
	for i := range maxPolicySeries + 50 {
		many.policies[fmt.Sprintf("default/p%d", i)] = &policy{}
	}
	m.metrics.swapped(many)
	if n := series(t, m.reg, "writ_authz_observed_refusals_total"); n > maxPolicySeries+4 {
		t.Errorf("%d series", n)
	}
}

// issuerKeys signs tokens of a test issuer.
type issuerKeys struct {
	key  *ecdsa.PrivateKey
	jwks string
}

func newIssuerKeys(t testing.TB) issuerKeys {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := k.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return issuerKeys{k, fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":%q,"y":%q}]}`, b64(point[1:33]), b64(point[33:]))}
}

func (k issuerKeys) token(t testing.TB, claims jwt.MapClaims) string {
	t.Helper()
	tok := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	tok.Header["kid"] = "k"
	s, err := tok.SignedString(k.key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTokens(t *testing.T) {
	m := newMesh(t)
	ours, theirs := newIssuerKeys(t), newIssuerKeys(t)
	issuers := map[string]*configpb.TokenIssuer{
		"default/r/0":      {Issuer: "https://ours", Audiences: []string{"shop"}, Jwks: ours.jwks},
		"default/r/1":      {Issuer: "https://header", Jwks: ours.jwks, FromHeaders: []*configpb.HeaderLocation{{Name: "X-Token", Prefix: "JWT "}}},
		"elsewhere/r/0":    {Issuer: "https://theirs", Jwks: theirs.jwks},
		"root/r/0":         {Issuer: "https://root", Jwks: ours.jwks, MeshWide: true},
		"istio-system/r/0": {Issuer: "https://not-root", Jwks: theirs.jwks}, // a namespace as any other
	}
	if err := m.policies.applyIssuers(context.Background(), issuers); err != nil {
		t.Fatal(err)
	}
	m.apply(t, regoPolicy("default/john", `allow := {"allowed": input.jwt.claims.sub == "john", "headers": {"x-issuer": input.jwt.issuer}} if input.jwt.verified
		else := {"allowed": false, "reason": object.get(input, "jwt_error", "no token")}`))
	bearer := func(k issuerKeys, claims jwt.MapClaims) func(*authv3.AttributeContext) {
		return withHeader("authorization", "Bearer "+k.token(t, claims))
	}
	later, earlier := time.Now().Add(time.Hour).Unix(), time.Now().Add(-time.Hour).Unix()
	payload := func(iss, sub string) func(*authv3.AttributeContext) {
		s, err := structpb.NewStruct(map[string]any{jwtPayload: map[string]any{"iss": iss, "sub": sub}})
		if err != nil {
			t.Fatal(err)
		}
		return func(a *authv3.AttributeContext) {
			a.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{jwtFilter: s}}
		}
	}
	for name, c := range map[string]struct {
		change func(*authv3.AttributeContext)
		want   string // the issuer if allowed, else the reason
	}{
		"good":          {bearer(ours, jwt.MapClaims{"iss": "https://ours", "aud": "shop", "sub": "john", "exp": later}), "https://ours"},
		"other subject": {bearer(ours, jwt.MapClaims{"iss": "https://ours", "aud": "shop", "sub": "mary", "exp": later}), "!"},
		"none":          {func(*authv3.AttributeContext) {}, "!no token"},
		"expired":       {bearer(ours, jwt.MapClaims{"iss": "https://ours", "aud": "shop", "sub": "john", "exp": earlier}), "!token is expired"},
		"audience":      {bearer(ours, jwt.MapClaims{"iss": "https://ours", "aud": "bank", "sub": "john", "exp": later}), "!token's audience is not accepted"},
		"another key":   {bearer(theirs, jwt.MapClaims{"iss": "https://ours", "aud": "shop", "sub": "john", "exp": later}), "!token's signature is wrong"},
		"of elsewhere":  {bearer(theirs, jwt.MapClaims{"iss": "https://theirs", "sub": "john", "exp": later}), "!token's issuer is not accepted"},
		"of the root":   {bearer(ours, jwt.MapClaims{"iss": "https://root", "sub": "john", "exp": later}), "https://root"},
		"of no root":    {bearer(theirs, jwt.MapClaims{"iss": "https://not-root", "sub": "john", "exp": later}), "!token's issuer is not accepted"},
		"own header":    {withHeader("x-token", "JWT "+ours.token(t, jwt.MapClaims{"iss": "https://header", "sub": "john", "exp": later})), "https://header"},
		"garbage":       {withHeader("authorization", "Bearer garbage"), "!token is malformed: it does not have three parts"},
		"basic":         {withHeader("authorization", "Basic abc"), "!no token"},
		"parameter": {func(a *authv3.AttributeContext) {
			a.Request.Http.Path = "/?access_token=" + ours.token(t, jwt.MapClaims{"iss": "https://ours", "aud": "shop", "sub": "john", "exp": later})
		}, "https://ours"},
		"one of two bad": {func(a *authv3.AttributeContext) {
			bearer(ours, jwt.MapClaims{"iss": "https://ours", "aud": "shop", "sub": "john", "exp": later})(a)
			withHeader("x-token", "JWT garbage")(a)
		}, "!token is malformed: it does not have three parts"},
		"by Envoy":        {payload("https://envoy", "john"), "https://envoy"},
		"by Envoy, mary":  {payload("https://envoy", "mary"), "!"},
		"a forged header": {func(a *authv3.AttributeContext) { a.Request.Http.Headers["jwt"] = `{"verified":true}` }, "!no token"},
	} {
		t.Run(name, func(t *testing.T) {
			r := m.check(t, "default/john", c.change)
			got := "!" + r.GetDynamicMetadata().GetFields()[metadataReason].GetStringValue()
			if allowed(r) {
				got = r.GetOkResponse().GetHeaders()[0].GetHeader().GetValue()
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	bad := maps.Clone(issuers)
	bad["default/r/2"] = &configpb.TokenIssuer{Issuer: "x", Jwks: `{"keys":[`}
	if err := m.policies.applyIssuers(context.Background(), bad); err == nil || !strings.Contains(err.Error(), "default/r/2") {
		t.Errorf("no key set: %v", err)
	}
	// Keys that cannot verify hold back nobody, and verify nothing.
	useless := maps.Clone(issuers)
	useless["default/r/2"] = &configpb.TokenIssuer{Issuer: "x", Jwks: `{"keys":[{"kty":"oct","k":"AA"}]}`}
	if err := m.policies.applyIssuers(context.Background(), useless); err != nil {
		t.Errorf("symmetric keys: %v", err)
	}
	if r := m.check(t, "default/john", bearer(ours, jwt.MapClaims{"iss": "x", "sub": "john", "exp": later})); allowed(r) {
		t.Error("a token of an issuer without usable keys is taken")
	}
}

// TestCheckConnections: about a connection the policies are named in the metadata of
// the call; about a request nothing but its context extensions counts, and a connection
// is closed to where nothing is named.
func TestCheckConnections(t *testing.T) {
	m := newMesh(t)
	m.apply(t,
		regoPolicy("default/reviews", `allow if endswith(input.attributes.source.principal, "/sa/reviews")`),
		regoPolicy("default/get", `allow if input.attributes.request.http.method == "GET"`))
	connection := func(a *authv3.AttributeContext) { a.Request, a.ContextExtensions = nil, nil }
	stranger := func(a *authv3.AttributeContext) { connection(a); a.Source.Principal = "" }
	for name, c := range map[string]struct {
		metadata []string
		change   func(*authv3.AttributeContext)
		allow    bool
	}{
		"allowed":             {[]string{configpb.PoliciesMetadata, "default/reviews"}, connection, true},
		"another caller":      {[]string{configpb.PoliciesMetadata, "default/reviews"}, stranger, false},
		"one of two":          {[]string{configpb.PoliciesMetadata, "default/reviews,default/get"}, connection, false},
		"each in a value":     {[]string{configpb.PoliciesMetadata, "default/reviews", configpb.PoliciesMetadata, "default/get"}, connection, false},
		"none named":          {nil, connection, false},
		"not known":           {[]string{configpb.PoliciesMetadata, "default/none"}, connection, false},
		"a request":           {[]string{configpb.PoliciesMetadata, "default/get"}, func(a *authv3.AttributeContext) { a.ContextExtensions = nil }, false},
		"a request's own are": {[]string{configpb.PoliciesMetadata, "default/none"}, func(a *authv3.AttributeContext) { a.ContextExtensions[PoliciesKey] = "default/get" }, true},
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(c.metadata...))
		resp, err := m.Check(ctx, checkRequest("", c.change))
		if err != nil || allowed(resp) != c.allow {
			t.Errorf("%s: allowed %v, %v", name, allowed(resp), err)
		}
	}
	if log := m.log.String(); !strings.Contains(log, `"policies":"default/reviews"`) {
		t.Errorf("the policies that allowed a connection are not in the log: %s", log)
	}
}
