package security

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/envoy"
)

// eachEnvoy runs a test with every version.
func eachEnvoy(t *testing.T, test func(t *testing.T, bin string)) {
	for _, bin := range envoytest.All(t) {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(bin))), func(t *testing.T) { test(t, bin) })
	}
}

// proxy is a running Envoy in front of a program that answers every request
// that gets through the filters with 200 and "passed".
type proxy struct {
	t         testing.TB
	listeners map[string]string // addresses by name and kind
	shared    map[string]string // the listener of an inbound that shares one
	admin     string
	authority authority
	clients   map[string]*http.Client
	log       string
}

// inbound is one listener of the proxy under test.
type inbound struct {
	http *HTTP
	// vhosts overrides http's content by domain, with http's filters.
	vhosts map[string]*HTTP
	// direct has Envoy's router answer as the program would, for tests with so
	// many requests that the program is what takes the time.
	direct bool
	// shared has inbounds with the same filters share a connection manager, of which each
	// costs Envoy some ten milliseconds. The header inboundHeader tells their requests
	// apart, so it is not for rules that see all headers.
	shared bool
	tcp    *TCP
	// mtls says that callers with certificates come, too.
	mtls bool
	// port is that of the listener "plain", for rules that name it; 0 is any.
	port uint32
	// alter changes the HTTP connection manager, nil does not.
	alter func(*hcmv3.HttpConnectionManager, *routev3.Route)
}

// start runs Envoy with the given inbounds.
func start(t testing.TB, bin string, inbounds map[string]inbound, more ...*clusterv3.Cluster) *proxy {
	t.Helper()
	return startUnder(t, bin, newAuthority(t), inbounds, more...)
}

// startUnder is start with an authority that has signed something before.
func startUnder(t testing.TB, bin string, a authority, inbounds map[string]inbound, more ...*clusterv3.Cluster) *proxy {
	t.Helper()
	dir := t.TempDir()
	p := &proxy{t: t, listeners: map[string]string{}, shared: map[string]string{}, authority: a, clients: map[string]*http.Client{}, log: filepath.Join(dir, "access.log")}
	config := writeBootstrap(t, bootstrap(t, p, inbounds, more))
	adminFile := filepath.Join(dir, "admin")
	t.Cleanup(func() {
		for _, c := range p.clients {
			c.CloseIdleConnections()
		}
		if text, err := os.ReadFile(p.log); t.Failed() && err == nil {
			t.Logf("access log:\n%s", tail(string(text), 40))
		}
	})
	e := envoytest.Run(t, bin, config, "--file-flush-interval-msec", "50", "--admin-address-path", adminFile)
	proctest.Eventually(t, 30*time.Second, func() error {
		select {
		case <-e.Done():
			t.Fatal("envoy ended")
		default:
		}
		return p.findListeners(adminFile)
	})
	return p
}

// writeBootstrap writes a configuration for Envoy, in the form that takes both
// sides the least time to write and to read, and returns the file's name.
func writeBootstrap(t testing.TB, b *bootstrapv3.Bootstrap) string {
	t.Helper()
	raw, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.pb")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// validate has Envoy check a configuration without running it. An Envoy that is
// run with what it refuses ends, see start.
func validate(t testing.TB, bin string, b *bootstrapv3.Bootstrap) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), bin, "--mode", "validate", "-c", writeBootstrap(t, b), "-l", "error").CombinedOutput(); err != nil {
		t.Fatalf("envoy refuses the configuration: %v\n%s", err, out)
	}
}

func tail(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// findListeners asks an Envoy that is live where it listens.
func (p *proxy) findListeners(adminFile string) error {
	admin, err := os.ReadFile(adminFile)
	if err != nil {
		return err
	}
	p.admin = "http://" + string(admin)
	body, err := get(p.admin + "/ready")
	if err != nil {
		return err
	}
	if !strings.HasPrefix(body, "LIVE") {
		return fmt.Errorf("not ready: %q", body)
	}
	body, err = get(p.admin + "/listeners?format=json")
	if err != nil {
		return err
	}
	var list struct {
		ListenerStatuses []struct {
			Name         string
			LocalAddress struct {
				SocketAddress struct {
					Address   string
					PortValue int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		return err
	}
	for _, l := range list.ListenerStatuses {
		p.listeners[l.Name] = fmt.Sprintf("%s:%d", l.LocalAddress.SocketAddress.Address, l.LocalAddress.SocketAddress.PortValue)
	}
	return nil
}

func get(url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func bootstrap(t testing.TB, p *proxy, inbounds map[string]inbound, clusters []*clusterv3.Cluster) *bootstrapv3.Bootstrap {
	static := &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{backend(t)}}
	if !slices.ContainsFunc(clusters, func(c *clusterv3.Cluster) bool { return c.GetName() == "line" }) {
		static.Clusters = append(static.Clusters, lineServer(t))
	}
	stands, seen := map[string]bool{}, map[string]*clusterv3.Cluster{}
	for _, c := range clusters {
		stands[c.GetName()] = true // for that of the policies
		static.Clusters = append(static.Clusters, c)
	}
	add := func(list []*clusterv3.Cluster) {
		for _, c := range list {
			switch has := seen[c.GetName()]; {
			case stands[c.GetName()]:
			case has == nil:
				seen[c.GetName()] = c
				static.Clusters = append(static.Clusters, c)
			case !proto.Equal(has, c):
				t.Fatalf("inbounds have two clusters %s that differ: give each an Envoy of its own", c.GetName())
			}
		}
	}
	server := envoy.TransportSocket(p.authority.server(t))
	for _, in := range inbounds {
		if in.http == nil {
			add(in.tcp.Clusters)
			continue
		}
		add(in.http.Clusters)
		for _, v := range in.vhosts {
			add(v.Clusters)
		}
	}
	for name, l := range p.grouped(t, inbounds) {
		static.Listeners = append(static.Listeners, l.listeners(name, server)...)
	}
	return &bootstrapv3.Bootstrap{
		Node:            &corev3.Node{Id: workload().ID, Cluster: "httpbin"},
		StaticResources: static,
		Admin:           &bootstrapv3.Admin{Address: envoy.SocketAddress("127.0.0.1", 0)},
		// As package bootstrap has it: old releases refuse all but the smallest.
		LayeredRuntime: &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{Name: "static", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{
			StaticLayer: &structpb.Struct{Fields: map[string]*structpb.Value{"re2.max_program_size.error_level": structpb.NewNumberValue(32768)}},
		}}}},
	}
}

func (p *proxy) httpManager(in inbound) *hcmv3.HttpConnectionManager {
	routes := &routev3.RouteConfiguration{Name: "inbound"}
	every := &routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}}
	if in.direct {
		every.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: http.StatusOK, Body: inline("passed\n")}}
	} else {
		every.Action = &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "backend"}}}
	}
	vhost := func(name string, domains []string, h *HTTP) {
		routes.VirtualHosts = append(routes.VirtualHosts, &routev3.VirtualHost{
			Name: name, Domains: domains, Metadata: h.Metadata, RateLimits: h.RateLimits, TypedPerFilterConfig: h.PerFilterConfig,
			// As inbound routes have it; refusals must come through nevertheless.
			ResponseHeadersToRemove: []string{DeniedByHeader},
			Routes:                  []*routev3.Route{every},
		})
	}
	vhost("all", []string{"*"}, in.http)
	for domain, h := range in.vhosts {
		vhost(domain, []string{domain, "*." + domain, "*." + domain + "."}, h)
	}
	routes.IgnorePortInHostMatching = true
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix:       "inbound",
		RouteSpecifier:   &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes},
		LocalReplyConfig: in.http.LocalReply,
		AccessLog:        fileLog(p.log),
	}
	manager.HttpFilters = append(append(manager.HttpFilters, whole(in.http)...), &hcmv3.HttpFilter{
		Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: envoy.Any(&routerv3.Router{})},
	})
	if in.alter != nil {
		in.alter(manager, every)
	}
	return manager
}

// whole gives the filters with the content of those that are resources of their own.
func whole(h *HTTP) []*hcmv3.HttpFilter {
	out := slices.Clone(h.Filters)
	for i, f := range out {
		for _, e := range h.Extensions {
			if f.GetConfigDiscovery() != nil && f.GetName() == e.Config.GetName() {
				out[i] = &hcmv3.HttpFilter{Name: f.GetName(), ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: e.Config.GetTypedConfig()}}
			}
		}
	}
	return out
}

// backend runs the program behind the proxy.
func backend(t testing.TB) *clusterv3.Cluster {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"X-Sub", "Authorization", "X-Payload"} {
			w.Header()["Saw-"+name] = r.Header[name]
		}
		if cost := r.Header.Get("Answer-Cost"); cost != "" {
			w.Header().Set("X-Cost", cost)
		}
		_, _ = io.WriteString(w, "passed\n")
	}))
	t.Cleanup(server.Close)
	address := netip.MustParseAddrPort(server.Listener.Addr().String())
	c := &clusterv3.Cluster{Name: "backend", ConnectTimeout: durationpb.New(5 * time.Second)}
	addEndpoint(c, address.Addr().String(), uint32(address.Port()))
	return c
}

func inline(text string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}}
}

// request is one request to the proxy.
type request struct {
	method, path, host string
	header             map[string]string
	// more are further lines of headers, name and value.
	more [][2]string
	// identity is the caller's SPIFFE ID; empty is plain text.
	identity string
	// from is the address to call from, 127.0.0.1 if empty.
	from string
	// raw says that the path is sent as it stands.
	raw bool
}

// answer is what came back.
type answer struct {
	status   int
	deniedBy string
	body     string
	header   http.Header
}

// address is where an inbound takes callers with a certificate, or those without.
func (p *proxy) address(inbound string, mtls bool) string {
	p.t.Helper()
	kind := ".plain"
	if mtls {
		kind = ".mtls"
	}
	address := p.listeners[cmp.Or(p.shared[inbound], inbound)+kind]
	if address == "" {
		p.t.Fatalf("%s has no listener %s", inbound, kind)
	}
	return address
}

func (p *proxy) do(name string, r request) answer {
	p.t.Helper()
	scheme, address := "http", p.address(name, r.identity != "")
	if r.identity != "" {
		scheme = "https"
	}
	if r.method == "" {
		r.method = http.MethodGet
	}
	if r.path == "" {
		r.path = "/"
	}
	url := scheme + "://" + address
	if !r.raw {
		url += r.path
	}
	req, err := http.NewRequestWithContext(p.t.Context(), r.method, url, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	if r.raw {
		req.URL.Opaque = r.path
	}
	req.Host = r.host
	if req.Host == "" {
		req.Host = "httpbin.default"
	}
	if p.shared[name] != "" {
		req.Header.Set(inboundHeader, name)
	}
	for k, v := range r.header {
		req.Header[http.CanonicalHeaderKey(k)] = []string{v}
	}
	for _, more := range r.more {
		req.Header.Add(more[0], more[1])
	}
	resp, err := p.client(r).Do(req)
	if err != nil {
		p.t.Fatalf("%+v: %v", r, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header.Get(DeniedByHeader), string(body), resp.Header}
}

func (p *proxy) client(r request) *http.Client {
	key := r.identity + "|" + r.from
	if c := p.clients[key]; c != nil {
		return c
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if r.from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(r.from)}
	}
	c := &http.Client{
		Transport: &http.Transport{
			DialContext:        dialer.DialContext,
			TLSClientConfig:    p.authority.client(p.t, r.identity),
			DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       10 * time.Second,
	}
	p.clients[key] = c
	return c
}

// authority signs the certificates of a test.
type authority struct{ *pkitest.Root }

func newAuthority(t testing.TB) authority {
	t.Helper()
	return authority{pkitest.NewRoot(t, "")}
}

func (a authority) server(t testing.TB) *tlsv3.DownstreamTlsContext {
	cert, key := a.Issue(t, pkitest.Leaf("spiffe://cluster.local/ns/default/sa/httpbin", time.Hour))
	return &tlsv3.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true),
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsCertificates: []*tlsv3.TlsCertificate{{CertificateChain: inline(string(cert)), PrivateKey: inline(string(key))}},
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{
				ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(string(a.PEM()))},
			},
		},
	}
}

func (a authority) client(t testing.TB, identity string) *tls.Config {
	t.Helper()
	if identity == "" {
		return nil
	}
	pair := a.Pair(t, pkitest.Leaf(identity, time.Hour))
	// The tests look at what the server makes of the caller, not the reverse.
	return &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, ServerName: "httpbin.default"} //nolint:gosec // the server's name is not under test
}

// accessLog waits until the log has that many lines.
func (p *proxy) accessLog(lines int) string {
	p.t.Helper()
	var text []byte
	proctest.Eventually(p.t, 15*time.Second, func() error {
		var err error
		if text, err = os.ReadFile(p.log); err == nil && strings.Count(string(text), "\n") < lines {
			err = fmt.Errorf("access log has not %d lines:\n%s", lines, text)
		}
		return err
	})
	return string(text)
}
