package nodeagent_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/nodeagent/bootstrap"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

func anyOf(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// listener answers every request over mutual TLS, with secrets from the agent, the roots
// by a name, by what the route configuration "answer" says.
func listener(t *testing.T, at netip.AddrPort, roots string) *listenerv3.Listener {
	sds := func(name string) *tlsv3.SdsSecretConfig {
		return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
			ResourceApiVersion: corev3.ApiVersion_V3, InitialFetchTimeout: durationpb.New(0),
			ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
				ApiType: corev3.ApiConfigSource_DELTA_GRPC, TransportApiVersion: corev3.ApiVersion_V3,
				GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
					ClusterName: bootstrap.AgentCluster,
					RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{BaseInterval: durationpb.New(100 * time.Millisecond), MaxInterval: durationpb.New(time.Second)}},
				}}}},
			}},
		}}
	}
	server := &tlsv3.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true),
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams:                      &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sds("default")},
			ValidationContextType:          &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{ValidationContextSdsSecretConfig: sds(roots)},
		},
	}
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix: "test",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: "answer", ConfigSource: &corev3.ConfigSource{
			ResourceApiVersion: corev3.ApiVersion_V3, InitialFetchTimeout: durationpb.New(0),
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		}}},
		HttpFilters: []*hcmv3.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(t, &routerv3.Router{})}}},
	}
	return &listenerv3.Listener{
		Name: "web",
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: at.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(at.Port())},
		}}},
		FilterChains: []*listenerv3.FilterChain{{
			TransportSocket: &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: anyOf(t, server)}},
			Filters:         []*listenerv3.Filter{{Name: "envoy.filters.network.http_connection_manager", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: anyOf(t, manager)}}},
		}},
	}
}

func answer(body string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: "answer", VirtualHosts: []*routev3.VirtualHost{{
		Name: "all", Domains: []string{"*"},
		Routes: []*routev3.Route{{
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
				Status: 200, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: body}},
			}},
		}},
	}}}
}

// address gives one on which nothing listens.
func address(t *testing.T) netip.AddrPort {
	t.Helper()
	return netip.MustParseAddrPort(proctest.Address(t))
}

// envoy is a real one.
type envoy struct {
	*proctest.Process
	admin, ready, prom netip.AddrPort
}

func startEnvoy(t *testing.T, r *rig, binary string) *envoy {
	t.Helper()
	e := &envoy{admin: address(t), ready: address(t), prom: address(t)}
	data, err := bootstrap.Bootstrap(bootstrap.Options{
		NodeID: "sidecar~10.9.9.9~somebody-else.default~default.svc.cluster.local", AgentSocket: r.socket(), Secret: r.secret(t),
		Admin: e.admin, Readiness: e.ready, Prometheus: e.prom,
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	e.Process = envoytest.Run(t, binary, file)
	return e
}

// caller calls the listener with a certificate of the mesh, each time on a new
// connection.
type caller struct {
	url    string
	config *tls.Config
}

func newCaller(t *testing.T, r *rig, at netip.AddrPort) *caller {
	c := &caller{url: "https://" + at.String() + "/"}
	c.config = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{identity(t, r.root, "/ns/default/sa/caller")}, RootCAs: r.root.Pool(),
		// A SPIFFE certificate has no DNS name: the chain and the URI are what counts.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			leaf := s.PeerCertificates[0]
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != spiffeID {
				return fmt.Errorf("server is %v", leaf.URIs)
			}
			if !time.Now().Before(leaf.NotAfter) {
				return errors.New("the server's certificate has expired")
			}
			return leaf.CheckSignatureFrom(r.root.Cert)
		},
	}
	return c
}

// call returns the body and the serial and public key of the server's certificate.
func (c *caller) call(ctx context.Context) (body, serial, key string, err error) {
	transport := &http.Transport{TLSClientConfig: c.config, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return "", "", "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", "", "", err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 {
		err = errors.Join(err, fmt.Errorf("status %d", resp.StatusCode))
	}
	leaf := resp.TLS.PeerCertificates[0]
	return string(data), leaf.SerialNumber.String(), string(leaf.RawSubjectPublicKeyInfo), err
}

func (c *caller) want(t *testing.T, what, body string) (serial, key string) {
	t.Helper()
	proctest.Eventually(t, bound, func() error {
		got, s, k, err := c.call(t.Context())
		serial, key = s, k
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", what, err)
		case got != body:
			return fmt.Errorf("%s: answer is %q, want %q", what, got, body)
		}
		return nil
	})
	return serial, key
}

// load calls all the time.
type load struct {
	stop    context.CancelFunc
	wg      sync.WaitGroup
	calls   atomic.Int64
	failed  []error
	serials map[string]string // of the server's certificates, to their keys
}

func (c *caller) load(ctx context.Context) *load {
	ctx, stop := context.WithCancel(ctx)
	l := &load{stop: stop, serials: make(map[string]string)}
	l.wg.Go(func() {
		for ctx.Err() == nil {
			_, serial, key, err := c.call(context.WithoutCancel(ctx))
			l.calls.Add(1)
			if err != nil {
				l.failed = append(l.failed, err)
			}
			l.serials[serial] = key
			<-time.After(5 * time.Millisecond)
		}
	})
	return l
}

// end stops the load, after a few calls at least, and fails the test if a call
// failed.
func (l *load) end(t *testing.T) {
	t.Helper()
	proctest.Eventually(t, bound, func() error {
		if n := l.calls.Load(); n < 10 {
			return fmt.Errorf("%d calls so far", n)
		}
		return nil
	})
	l.stop()
	l.wg.Wait()
	if len(l.failed) > 0 {
		t.Errorf("%d of %d calls failed, first: %v", len(l.failed), l.calls.Load(), errors.Join(l.failed[:min(1, len(l.failed))]...))
	}
	keys := make(map[string]bool)
	for _, k := range l.serials {
		keys[k] = true
	}
	if len(keys) != len(l.serials) {
		t.Errorf("%d certificates with %d keys", len(l.serials), len(keys))
	}
}

func get(addr netip.AddrPort, path string) (int, error) {
	code, _, err := getBody(addr, path)
	return code, err
}

func getBody(addr netip.AddrPort, path string) (int, string, error) {
	resp, err := http.Get("http://" + addr.String() + path)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// TestEnvoy is one long story of a real Envoy, for the newest and the oldest one
// supported.
func TestEnvoy(t *testing.T) {
	t.Parallel()
	for i, binary := range envoytest.All(t) {
		t.Run([]string{"newest", "oldest"}[i], func(t *testing.T) {
			t.Parallel()
			story(t, binary)
		})
	}
}

func story(t *testing.T, binary string) {
	r := newRig(t, 4*time.Second) // renewal after 1.6 to 2.4 s
	at := address(t)
	r.pilot.set(t, "web", listener(t, at, "ROOTCA"))
	r.pilot.set(t, "answer", answer("one"))
	r.start(t)
	r.connected(t)
	c := newCaller(t, r, at)

	first := startEnvoy(t, r, binary)
	r.register(t, first.PID())
	c.want(t, "the first answer", "one")
	if agent, ok := r.pilot.saw(proxyID); !ok || agent != nodeName {
		t.Errorf("pilot saw %v", r.pilot.nodes)
	}
	ownListeners(t, first)

	// Rotations lose nothing.
	l := c.load(t.Context())
	rotated(t, r, 4)
	l.end(t)
	if len(l.serials) < 4 {
		t.Errorf("callers saw %d certificates", len(l.serials))
	}

	// An edit goes live, and pilot's death and return lose nothing.
	l = c.load(t.Context())
	r.pilot.set(t, "answer", answer("two"))
	c.want(t, "the edit", "two")
	r.pilot.stop()
	r.status(t, "pilot is away", func(st *nodeagentpb.GetStatusResponse) bool { return !st.GetPilotConnected() })
	rotated(t, r, 1)
	r.pilot.set(t, "answer", answer("three"))
	r.pilot.start(t)
	c.want(t, "the edit made while pilot was away", "three")
	l.end(t)

	// The agent is killed and comes back without pilot: the same Envoy, which
	// nobody registers again, gets a new certificate with a new key.
	l = c.load(t.Context())
	_, key := c.want(t, "before the kill", "three")
	onDisk(t, r, "three")
	r.pilot.stop()
	r.agent.Kill()
	r.start(t)
	proctest.Eventually(t, bound, func() error {
		_, _, now, err := c.call(t.Context())
		if err == nil && now == key {
			err = errors.New("still the old one")
		}
		return err
	})
	l.end(t)

	// Another Envoy starts while pilot is away.
	first.Kill()
	second := startEnvoy(t, r, binary)
	r.register(t, second.PID())
	c.want(t, "an answer by the configuration on disk", "three")
	l = c.load(t.Context())
	r.pilot.set(t, "answer", answer("four"))
	r.pilot.start(t)
	c.want(t, "the edit after it went live", "four")
	l.end(t)

	// The authority goes away for less than a certificate's life.
	l = c.load(t.Context())
	r.ca.stop()
	r.status(t, "the authority is away", func(st *nodeagentpb.GetStatusResponse) bool { return !st.GetCaConnected() })
	r.ca.start(t)
	rotated(t, r, 2)
	l.end(t)
	if v := r.metric(t, `writ_nodeagent_sds_pushes_total{result="nacked"}`); v != "0" {
		t.Errorf("refused pushes: %s", v)
	}
}

// onDisk waits until the configuration that is kept has the text: a moment after
// the acknowledgement.
func onDisk(t *testing.T, r *rig, text string) {
	t.Helper()
	proctest.Eventually(t, bound, func() error {
		files, err := filepath.Glob(r.path("state/proxies/*.config"))
		if err != nil || len(files) != 1 {
			return fmt.Errorf("files: %v, %w", files, err)
		}
		data, err := os.ReadFile(files[0])
		if err == nil && !strings.Contains(string(data), text) {
			err = fmt.Errorf("it has no %q", text)
		}
		return err
	})
}

// rotated waits for n more certificates.
func rotated(t *testing.T, r *rig, n int) {
	t.Helper()
	from := r.ca.count(spiffeID)
	proctest.Eventually(t, bound, func() error {
		if got := r.ca.count(spiffeID) - from; got < n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
}

func ownListeners(t *testing.T, e *envoy) {
	t.Helper()
	proctest.Eventually(t, bound, func() error {
		code, err := get(e.ready, "/healthz/ready")
		if err == nil && code != 200 {
			err = fmt.Errorf("status %d", code)
		}
		return err
	})
	for _, tc := range []struct {
		at   netip.AddrPort
		path string
		want int
	}{{e.prom, "/stats/prometheus", 200}, {e.prom, "/config_dump", 404}, {e.ready, "/quitquitquit", 404}, {e.ready, "/healthz/ready/../../config_dump", 404}} {
		if code, err := get(tc.at, tc.path); err != nil || code != tc.want {
			t.Errorf("%s%s: %d, %v; want %d", tc.at, tc.path, code, err, tc.want)
		}
	}
}
