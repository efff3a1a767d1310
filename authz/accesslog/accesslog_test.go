package accesslog

import (
	"context"
	"net"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

func metadata(t testing.TB, filter string, fields map[string]any) *corev3.Metadata {
	t.Helper()
	s, err := structpb.NewStruct(fields)
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{filter: s}}
}

// TestVerdict: what the ways come to in which an Envoy says who refused, or would have.
func TestVerdict(t *testing.T) {
	http := func(details, header string, m *corev3.Metadata) Report {
		e := &datav3.HTTPAccessLogEntry{Response: &datav3.HTTPResponseProperties{ResponseCodeDetails: details}}
		if header != "" {
			e.Response.ResponseHeaders = map[string]string{"x-writ-denied-by": header}
		}
		return Report{HTTP: e, Common: &datav3.AccessLogCommon{
			Metadata: m, CustomTags: map[string]string{configpb.ReportDryRunAllow: "AuthorizationPolicy default/a,default/b"},
		}}
	}
	tcp := func(details string, m *corev3.Metadata) Report {
		return Report{Common: &datav3.AccessLogCommon{ConnectionTerminationDetails: details, Metadata: m}}
	}
	for name, c := range map[string]struct {
		report   Report
		rule     string
		refused  bool
		observed []string
	}{
		"allowed":             {http("via_upstream", "", nil), "", false, nil},
		"the program's claim": {http("via_upstream", "AuthorizationPolicy default/x", nil), "", false, nil},
		"by its header":       {http("rbac_access_denied_matched_policy[none]", "AuthorizationPolicy default/x no rule allows", nil), "AuthorizationPolicy default/x no rule allows", true, nil},
		"at a gateway":        {http("rbac_access_denied_matched_policy[x]", "", metadata(t, "writ", map[string]any{"denied_by": "AuthorizationPolicy a/b rule 1"})), "AuthorizationPolicy a/b rule 1", true, nil},
		"by its details":      {http("rbac_access_denied_matched_policy[AuthorizationPolicy_default/x_rule_2]", "", nil), "AuthorizationPolicy default/x rule 2", true, nil},
		"a token":             {http("jwt_authn_access_denied{Jwt_is_expired}", "RequestAuthentication default/j (Jwt_is_expired)", nil), "RequestAuthentication default/j (Jwt_is_expired)", true, nil},
		"a mode":              {http("rbac_access_denied_matched_policy[PeerAuthentication_STRICT]", "", nil), "PeerAuthentication STRICT", true, nil},
		"malformed":           {http("rbac_access_denied_matched_policy[RegoPolicy_default/x_malformed]", "", nil), "RegoPolicy default/x", true, nil},
		"a connection":        {tcp("rbac_access_denied_matched_policy[AuthorizationPolicy_default/x_y_rule_0]", nil), "AuthorizationPolicy default/x_y rule 0", true, nil},
		"no rule let it in":   {tcp("rbac_access_denied_matched_policy[none]", nil), "rbac_access_denied_matched_policy[none]", true, nil},
		"a connection passed": {tcp("", nil), "", false, nil},
		"dry run of DENY": {http("via_upstream", "", metadata(t, rbacHTTP, map[string]any{
			"istio_dry_run_deny_shadow_engine_result": "denied", "istio_dry_run_deny_shadow_effective_policy_id": "AuthorizationPolicy default/d rule 0",
		})), "", false, []string{"AuthorizationPolicy default/d rule 0"}},
		"a list and a dry run": {http("via_upstream", "", metadata(t, rbacHTTP, map[string]any{
			"istio_dry_run_deny_shadow_engine_result": "denied", "istio_dry_run_deny_shadow_effective_policy_id": "AuthorizationPolicy default/d rule 0",
			"writ_dry_run_access_shadow_engine_result": "denied", "writ_dry_run_access_shadow_effective_policy_id": "AccessList default/l rule 1",
		})), "", false, []string{"AccessList default/l rule 1", "AuthorizationPolicy default/d rule 0"}},
		"dry run of ALLOW": {http("via_upstream", "", metadata(t, rbacHTTP, map[string]any{"istio_dry_run_allow_shadow_engine_result": "denied"})), "", false, []string{"AuthorizationPolicy default/a,default/b no rule allows"}},
		"dry run allowed":  {http("via_upstream", "", metadata(t, rbacHTTP, map[string]any{"istio_dry_run_allow_shadow_engine_result": "allowed"})), "", false, nil},
		"quotas":           {http("via_upstream", "", metadata(t, rateLimit, map[string]any{"observed": "QuotaPolicy default/q limit 0, QuotaPolicy default/q limit 1"})), "", false, []string{"QuotaPolicy default/q limit 0", "QuotaPolicy default/q limit 1"}},
		"dry run at a TCP port": {tcp("", metadata(t, rbacTCP, map[string]any{
			"istio_dry_run_deny_shadow_engine_result": "denied", "istio_dry_run_deny_shadow_effective_policy_id": "AuthorizationPolicy default/d rule 0",
		})), "", false, []string{"AuthorizationPolicy default/d rule 0"}},
	} {
		rule, refused := c.report.Refused()
		if observed := c.report.Observed(); rule != c.rule || refused != c.refused || !slices.Equal(observed, c.observed) {
			t.Errorf("%s: %q %t %q; want %q %t %q", name, rule, refused, observed, c.rule, c.refused, c.observed)
		}
	}
}

// TestServer: the node is in the first message only, entries come in order, and an
// error of who takes them ends the stream.
func TestServer(t *testing.T) {
	taken := make(chan Report, 10)
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	accesslogv3.RegisterAccessLogServiceServer(g, &Server{Take: func(_ context.Context, r Report) error {
		taken <- r
		return nil
	}})
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	stream, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	entry := func(path string) *datav3.HTTPAccessLogEntry {
		return &datav3.HTTPAccessLogEntry{
			Request: &datav3.HTTPRequestProperties{Path: path, RequestMethod: corev3.RequestMethod_GET},
			CommonProperties: &datav3.AccessLogCommon{TlsProperties: &datav3.TLSProperties{
				LocalCertificateProperties: &datav3.TLSProperties_CertificateProperties{SubjectAltName: []*datav3.TLSProperties_CertificateProperties_SubjectAltName{
					{San: &datav3.TLSProperties_CertificateProperties_SubjectAltName_Uri{Uri: "spiffe://cluster.local/ns/default/sa/ratings"}},
				}},
			}},
		}
	}
	send := func(node string, paths ...string) {
		m := &accesslogv3.StreamAccessLogsMessage{}
		if node != "" {
			m.Identifier = &accesslogv3.StreamAccessLogsMessage_Identifier{Node: &corev3.Node{Id: node}}
		}
		logs := &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{}
		for _, p := range paths {
			logs.LogEntry = append(logs.LogEntry, entry(p))
		}
		m.LogEntries = &accesslogv3.StreamAccessLogsMessage_HttpLogs{HttpLogs: logs}
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	send("sidecar~127.0.0.1~ratings-1.default~x", "/a", "/b")
	send("", "/c")
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/a", "/b", "/c"} {
		r := <-taken
		if r.Path() != want || r.Method() != "GET" || r.Proxy != "sidecar~127.0.0.1~ratings-1.default~x" || r.To != "spiffe://cluster.local/ns/default/sa/ratings" {
			t.Errorf("%s %s of %s at %s, want %s", r.Method(), r.Path(), r.To, r.Proxy, want)
		}
	}
}
