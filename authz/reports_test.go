package authz

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/authz/accesslog"
	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/recording"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/service"
)

// recorderAt makes a recorder, and a function that stops it and reads what it wrote.
func recorderAt(t *testing.T) (*recording.Recorder, func() []*recording.Seen) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "recording")
	r, err := recording.Open(recording.Options{Folder: dir, MaxBytes: 1 << 20, PerSecond: 1000, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return r, func() (out []*recording.Seen) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := recording.Read(dir, func(s *recording.Seen) error {
			out = append(out, s)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
}

// TestObservedIsCountedAndRecorded: a policy that only observes refuses nothing, and
// whom it would have refused is in the metric, the decision log and the recording,
// without secrets.
func TestObservedIsCountedAndRecorded(t *testing.T) {
	m := newMesh(t)
	recorder, read := recorderAt(t)
	m.record.recorder = recorder
	observing := regoPolicy("default/watch", `allow := {"allowed": false, "reason": "not yet"} if {
		input.attributes.request.http.headers["x-user"] != "bob"
		input.attributes.request.http.headers.cookie
	}`)
	observing.Observe = true
	m.apply(t, observing, regoPolicy("default/no", "allow := false"))
	secrets := []func(*authv3.AttributeContext){
		withHeader("authorization", "Bearer hidden-token"), withHeader("cookie", "hidden"), withHeader("x-request-id", "r1"), withHeader("x-user", "alice"),
		func(a *authv3.AttributeContext) { a.Request.Http.Path = "/ratings/7?access_token=hidden&page=2" },
		withHeader(":path", "/ratings/7?access_token=hidden&page=2"), withHeader("referer", "https://x.example/?token=hidden"),
	}
	if !allowed(m.check(t, "default/watch", secrets...)) {
		t.Error("a policy that only observes refused")
	}
	if allowed(m.check(t, "default/no", secrets...)) {
		t.Error("not refused")
	}
	if got := sample(t, m.reg, "writ_authz_would_refuse_total", "spiffe://cluster.local/ns/default/sa/reviews", "ratings GET /ratings/*", "RegoPolicy default/watch"); got != 1 {
		t.Errorf("would_refuse_total is %v", got)
	}
	all := read()
	if len(all) != 2 {
		t.Fatalf("%d requests are recorded", len(all))
	}
	for i, s := range all {
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "hidden") || strings.Contains(string(text), "r1") {
			t.Errorf("the recording has secrets or what nobody needs: %s", text)
		}
		if s.Headers["x-user"] != "alice" || s.Headers["cookie"] != decisionlog.Redacted || s.Query != "access_token="+decisionlog.Redacted+"&page=2" || !s.AllHeaders || s.Allowed != (i == 0) {
			t.Errorf("recorded %s", text)
		}
	}
	if strings.Join(all[0].Observed, "") != "RegoPolicy default/watch" || all[1].Rule != "RegoPolicy default/no" {
		t.Errorf("observed %q, refused by %q", all[0].Observed, all[1].Rule)
	}
	if log := m.log.String(); !strings.Contains(log, "RegoPolicy default/watch") || strings.Contains(log, "hidden") || !strings.Contains(log, `"inputs":{"header x-user":"alice"}`) || !strings.Contains(log, `"inputs":{"header cookie":"[redacted]"}`) {
		t.Errorf("the decision log: %s", log)
	}
}

// TestSeriesAreBounded: callers choose paths, and do not fill the memory with them.
func TestSeriesAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := newMetrics(reg)
	for i := range 3 * maxObservedSeries {
		m.wouldRefuse([]string{"RegoPolicy default/x"}, "spiffe://cluster.local/ns/default/sa/web", "ratings", "GET", "/"+strconv.Itoa(i))
		m.wouldRefuse([]string{"rule " + strconv.Itoa(i)}, "\xff", "", "", "")
	}
	if n := series(t, reg, "writ_authz_would_refuse_total"); n > 2*maxObservedSeries+1 {
		t.Errorf("%d series", n)
	}
	if got := sample(t, reg, "writ_authz_would_refuse_total", "other", "other", "RegoPolicy default/x"); got < 2*maxObservedSeries {
		t.Errorf("%v beyond the bound", got)
	}
}

// TestReports: what an Envoy decided itself gets into the same log, and the recording.
func TestReports(t *testing.T) {
	recorder, read := recorderAt(t)
	var got []*decisionlog.Record
	reg := prometheus.NewRegistry()
	log, err := decisionlog.Open(decisionlog.Options{Each: func(r *decisionlog.Record) { got = append(got, r) }, AllowPercent: 100, Flush: 1 << 30, Metrics: reg, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c := DefaultConfig()
	r := &reports{decisions: log, what: logAll, redact: c.DecisionLog.redactor(), metrics: newMetrics(reg), recorder: recorder}
	san := func(id string) *datav3.TLSProperties_CertificateProperties {
		return &datav3.TLSProperties_CertificateProperties{SubjectAltName: []*datav3.TLSProperties_CertificateProperties_SubjectAltName{
			{San: &datav3.TLSProperties_CertificateProperties_SubjectAltName_Uri{Uri: id}},
		}}
	}
	claims, err := structpb.NewStruct(map[string]any{"payload": map[string]any{"iss": "i", "sub": "alice"}})
	if err != nil {
		t.Fatal(err)
	}
	err = r.take(t.Context(), accesslog.Report{
		Proxy: "sidecar~127.16.1.3~ratings-1.default~x", To: "spiffe://cluster.local/ns/default/sa/ratings",
		Common: &datav3.AccessLogCommon{
			TlsProperties: &datav3.TLSProperties{PeerCertificateProperties: san("spiffe://cluster.local/ns/default/sa/web")},
			Metadata:      &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.filters.http.jwt_authn": claims}},
		},
		HTTP: &datav3.HTTPAccessLogEntry{
			Request:  &datav3.HTTPRequestProperties{RequestMethod: corev3.RequestMethod_DELETE, Path: "/ratings/7?token=hidden", Authority: "ratings:9080", RequestId: "r2"},
			Response: &datav3.HTTPResponseProperties{ResponseCodeDetails: "rbac_access_denied_matched_policy[AuthorizationPolicy_default/x_rule_0]"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := log.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Decision != decisionlog.Refuse || got[0].By != decisionlog.ByEnvoy || got[0].Rule != "AuthorizationPolicy default/x rule 0" ||
		got[0].From != "spiffe://cluster.local/ns/default/sa/web" || got[0].Path != "/ratings/7" || got[0].RequestID != "r2" || got[0].Method != "DELETE" {
		t.Errorf("logged %+v", got)
	}
	all := read()
	if len(all) != 1 || all[0].Claims["sub"] != "alice" || all[0].Allowed || all[0].AllHeaders || all[0].Rule != "AuthorizationPolicy default/x rule 0" || strings.Contains(all[0].Query, "hidden") {
		t.Errorf("recorded %+v", all)
	}
}

// TestDocumentedLog: the configuration on the page is one.
func TestDocumentedLog(t *testing.T) {
	page, err := os.ReadFile("../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## The decision log")
	_, text, _ := strings.Cut(section, "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	c := DefaultConfig()
	if err := config.Load(writeFile(t, t.TempDir()+"/authz.yaml", text), &c); err != nil {
		t.Fatal(err)
	}
	if errs := append(c.DecisionLog.validate(), c.Recording.validate()...); len(errs) > 0 {
		t.Error(errs)
	}
	if _, err := c.DecisionLog.sink(); err != nil || c.DecisionLog.AllowPercent != 10 || c.Recording.PerSecond != 10 {
		t.Errorf("%+v, %v", c.DecisionLog, err)
	}
	if r := c.DecisionLog.redactor(); r.Header("X-Pin", "1234") != decisionlog.Redacted || r.Query("ticket=1") != "ticket="+decisionlog.Redacted {
		t.Error("the names of the page are not redacted")
	}
}

// TestDecisionLogConfig: which sinks there are.
func TestDecisionLogConfig(t *testing.T) {
	for sink, ok := range map[string]bool{
		"log": true, "stdout": true, "file:///var/log/decisions": true, "https://opa.example/logs": true, "http://127.0.0.1:1/logs": true, "http://localhost/logs": true,
		"": false, "file://x": false, "http://opa.example/logs": false, "https://": false, "https://u:p@opa.example/": false, "ftp://x/": false, "http://127.0.0.1.example/": false,
	} {
		c := DefaultConfig()
		c.DecisionLog.Sink = sink
		if errs := c.DecisionLog.validate(); (len(errs) == 0) != ok {
			t.Errorf("%q: %v", sink, errs)
		}
	}
	// What is on disk is that of a process that ended: the next one sends it.
	dir := t.TempDir()
	c := DefaultConfig()
	c.DecisionLog.Sink = "file://" + dir + "/decisions.jsonl"
	rt := &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()}
	log, err := c.DecisionLog.open(dir, rt)
	if err != nil {
		t.Fatal(err)
	}
	err = running(t.Context(), log, nil, func(context.Context) error {
		log.Add(&decisionlog.Record{ID: "1", Decision: decisionlog.Refuse})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(dir + "/decisions.jsonl"); err != nil || !strings.Contains(string(text), `"decision_id":"1"`) {
		t.Errorf("the last decision is not in the log: %q, %v", text, err)
	}
}
