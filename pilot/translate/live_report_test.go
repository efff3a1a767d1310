package translate

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/authz/accesslog"
	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/regoform"
	"github.com/writ-mesh/writ/pilot/model"
)

// reports are those that came, "<from> <method> <path> by <rule> would <rules>".
type reports struct {
	mu   sync.Mutex
	list []string
}

func (r *reports) take(_ context.Context, report accesslog.Report) error {
	rule, _ := report.Refused()
	from := report.From()[strings.LastIndexByte(report.From(), '/')+1:]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, fmt.Sprintf("%s %s %s by %s would %s", from, report.Method(), report.Path(), rule, strings.Join(report.Observed(), ", ")))
	return nil
}

func (r *reports) sorted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(slices.Values(r.list))
}

// refusing is an authz that refuses everything.
type refusing struct {
	authv3.UnimplementedAuthorizationServer
	asked atomic.Int64
}

func (r *refusing) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	r.asked.Add(1)
	return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}}, nil
}

// TestLiveReports: Envoys tell what they refuse themselves and what policies that only
// observe would have refused, with the rule, over HTTP and TCP, and nothing else unless
// it is asked for at run time.
func TestLiveReports(t *testing.T) {
	t.Parallel()
	for i, bin := range envoytest.All(t) {
		t.Run(filepath.Base(filepath.Dir(bin)), func(t *testing.T) { liveReports(t, bin, byte(40+i)) })
	}
}

func liveReports(t *testing.T, bin string, network byte) {
	m := newLive(t, network)
	m.bin = bin
	m.apart = []string{"shop-1"} // it is asked at run time to tell more
	socket := filepath.Join(t.TempDir(), "authz.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	got := &reports{}
	g := grpc.NewServer()
	accesslogv3.RegisterAccessLogServiceServer(g, &accesslog.Server{Take: got.take})
	checks := &refusing{}
	authv3.RegisterAuthorizationServer(g, checks)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	m.mesh.Deciders.Authz = "unix://" + socket

	client := m.workload("client-1", "default", "client", map[string]string{"app": "client"}, port(t, "http", 9000))
	shop := m.workload("shop-1", "default", "shop", map[string]string{"app": "shop"}, port(t, "http", 9080), port(t, "tcp", 9090))
	// Of a policy that authz decides authz itself knows; of one that the Envoy decides it
	// is told.
	db := m.workload("db-1", "default", "db", map[string]string{"app": "db"}, port(t, "tcp", 9091))
	kv := m.workload("kv-1", "default", "kv", map[string]string{"app": "kv"}, port(t, "tcp", 9092))
	m.mesh.RegoPolicies = []*model.RegoPolicy{
		{Meta: model.Meta{Ref: model.Ref{Kind: "RegoPolicy", Namespace: "default", Name: "db"}}, Selector: db.Labels, Module: "package p", Query: "data.p.allow"},
		{Meta: model.Meta{Ref: model.Ref{Kind: "RegoPolicy", Namespace: "default", Name: "kv"}}, Selector: kv.Labels, Module: "package p", Query: "data.p.allow", Form: &regoform.Policy{Malformed: regoform.False(), Surely: regoform.False(), Perhaps: regoform.False()}},
	}
	m.service("shop", "default", shop)
	m.apply(`
kind: AuthorizationPolicy
metadata: {name: closed}
spec: {action: DENY, selector: {matchLabels: {app: shop}}, rules: [{to: [{operation: {paths: [/closed*]}}, {operation: {ports: ["9090"]}}]}]}
---
kind: AuthorizationPolicy
metadata: {name: soon, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, selector: {matchLabels: {app: shop}}, rules: [{to: [{operation: {methods: [DELETE]}}]}]}
---
kind: AuthorizationPolicy
metadata: {name: known, annotations: {istio.io/dry-run: "true"}}
spec: {action: ALLOW, selector: {matchLabels: {app: shop}}, rules: [{to: [{operation: {paths: [/known, /open, /deleted]}}]}]}
`)
	for _, p := range []*model.Proxy{client, shop} {
		m.echo(p, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/open" {
				w.Header().Set("x-writ-denied-by", "AuthorizationPolicy default/forged rule 0")
				w.WriteHeader(http.StatusForbidden) // the program's own
			}
		})
	}
	m.tcpEcho(shop, shop.Ports[1])
	m.tcpEcho(db, db.Ports[0])
	m.tcpEcho(kv, kv.Ports[0])
	m.start()

	for _, r := range []string{"GET /known", "GET /open", "GET /closed?token=x", "DELETE /deleted", "GET /unknown"} {
		method, path, _ := strings.Cut(r, " ")
		m.via(client, method, "http://shop:9080"+path)
	}
	for _, address := range []string{hostPort(db.Address, 9091), hostPort(kv.Address, 9092), hostPort(shop.Address, 9090)} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "hello\n")
		if text, _ := io.ReadAll(conn); len(text) > 0 {
			t.Errorf("%s: %q came through", address, text)
		}
		_ = conn.Close()
	}
	if checks.asked.Load() != 1 {
		t.Errorf("authz was asked about %d connections", checks.asked.Load())
	}
	// An Envoy before 1.40 cannot give the names of a dry run of ALLOW.
	known := "AuthorizationPolicy default/known"
	if strings.Contains(bin, "envoy-"+envoytest.Oldest) {
		known = "AuthorizationPolicy (dry run)"
	}
	want := []string{
		" GET /closed?token=x by AuthorizationPolicy default/closed rule 0 would ",
		// Of a connection the rule holds without what only HTTP has.
		"   by AuthorizationPolicy default/closed rule 0 would AuthorizationPolicy default/soon rule 0",
		"   by RegoPolicy default/kv would ",
		" DELETE /deleted by  would AuthorizationPolicy default/soon rule 0",
		" GET /unknown by  would " + known + " no rule allows",
	}
	for i, w := range want {
		if !strings.HasPrefix(w, "  ") {
			want[i] = "client" + w
		}
	}
	slices.Sort(want)
	proctest.Until(t, bound, "the reports came", func() bool { return len(got.sorted()) >= len(want) })
	if list := got.sorted(); !slices.Equal(list, want) {
		t.Errorf("reported\n%s\nwant\n%s", strings.Join(list, "\n"), strings.Join(want, "\n"))
	}

	resp, err := http.Post(fmt.Sprintf("http://%s:%d/runtime_modify?writ.record=100", shop.Address, model.AdminPort), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	m.via(client, "GET", "http://shop:9080/known")
	proctest.Until(t, bound, "an allowed request is reported when asked for", func() bool {
		return slices.Contains(got.sorted(), "client GET /known by  would ")
	})
}
