package nodeagent_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/nodeagent/latest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	domain = "cluster.local"
	// bound is for everything that is waited for.
	bound = 20 * time.Second
)

// serverTLS is that of a service of the mesh.
func serverTLS(t testing.TB, r *pkitest.Root, path string, client tls.ClientAuthType) credentials.TransportCredentials {
	t.Helper()
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{identity(t, r, path)}, ClientAuth: client, ClientCAs: r.Pool(),
	})
}

// identity makes a TLS certificate for an identity of the trust domain.
func identity(t testing.TB, r *pkitest.Root, path string) tls.Certificate {
	t.Helper()
	return r.Pair(t, pkitest.Leaf("spiffe://"+domain+path, time.Hour))
}

// onOff is a gRPC server that can be stopped and started at one address.
type onOff struct {
	addr  string
	build func() *grpc.Server
	srv   *grpc.Server
}

func newOnOff(t testing.TB, build func() *grpc.Server) *onOff {
	t.Helper()
	l := proctest.Listen(t)
	o := &onOff{addr: l.Addr().String(), build: build}
	o.serve(l)
	t.Cleanup(o.stop)
	return o
}

func (o *onOff) start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", o.addr)
	if err != nil {
		t.Fatal(err)
	}
	o.serve(l)
}

func (o *onOff) serve(l net.Listener) {
	o.srv = o.build()
	go func(s *grpc.Server) { _ = s.Serve(l) }(o.srv)
}

func (o *onOff) stop() {
	if o.srv != nil {
		o.srv.Stop()
		o.srv = nil
	}
}

// fakeCA issues what is asked for.
type fakeCA struct {
	capb.UnimplementedCertificateAuthorityServer
	*onOff
	root   *pkitest.Root
	node   string
	life   time.Duration
	bundle latest.Value[[][]byte]
	jwt    *fakeJWT
	others fakeFederation

	registrations fakeRegistrations
	feed          fakeFeed
	witness       fakeWitness

	mu     sync.Mutex
	issued map[string]int
	said   []*capb.WatchBundleRequest
}

func newFakeCA(t testing.TB, root *pkitest.Root, node string, life time.Duration) *fakeCA {
	f := &fakeCA{root: root, node: node, life: life, issued: make(map[string]int), jwt: newFakeJWT(t, life)}
	f.bundle.Set([][]byte{root.Cert.Raw})
	f.onOff = newOnOff(t, func() *grpc.Server {
		s := grpc.NewServer(grpc.Creds(serverTLS(t, root, "/writ/ca", tls.VerifyClientCertIfGiven)))
		capb.RegisterCertificateAuthorityServer(s, f)
		capb.RegisterNodeRegistrationsServer(s, &f.registrations)
		capb.RegisterJWTAuthorityServer(s, f.jwt)
		capb.RegisterRevocationFeedServer(s, &f.feed)
		capb.RegisterWitnessServer(s, &f.witness)
		capb.RegisterFederationServer(s, &f.others)
		return s
	})
	return f
}

func (f *fakeCA) answer(id string, der []byte, life time.Duration) (*capb.CertificateResponse, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	cert, err := f.root.Sign(pkitest.Leaf(id, life), csr.PublicKey)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.issued[id]++
	f.mu.Unlock()
	roots, _ := f.bundle.Get()
	return &capb.CertificateResponse{Chain: [][]byte{cert}, Bundle: &capb.Bundle{TrustDomain: domain, Roots: roots}}, nil
}

func (f *fakeCA) Join(_ context.Context, r *capb.JoinRequest) (*capb.CertificateResponse, error) {
	if r.GetToken() != "one-time" {
		return nil, status.Error(codes.PermissionDenied, "token")
	}
	return f.answer("spiffe://"+domain+"/writ/node/"+f.node, r.GetCsr(), time.Hour)
}

func (f *fakeCA) Issue(_ context.Context, r *capb.IssueRequest) (*capb.CertificateResponse, error) {
	return f.answer(r.GetSpiffeId(), r.GetCsr(), f.life)
}

func (f *fakeCA) count(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.issued[id]
}

func (f *fakeCA) WatchBundle(s grpc.BidiStreamingServer[capb.WatchBundleRequest, capb.Bundle]) error {
	go func() {
		for {
			req, err := s.Recv()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.said = append(f.said, req)
			f.mu.Unlock()
		}
	}()
	for seq := uint64(1); ; seq++ {
		roots, changed := f.bundle.Get()
		jwks, rekeyed := f.jwt.jwks.Get()
		if err := s.Send(&capb.Bundle{TrustDomain: domain, Roots: roots, Sequence: seq, Jwks: jwks}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-rekeyed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

// hears waits until the newest that the agent said of the bundle is as wanted.
func (f *fakeCA) hears(t *testing.T, what string, ok func(*capb.WatchBundleRequest) bool) {
	t.Helper()
	proctest.Eventually(t, bound, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.said) == 0 || !ok(f.said[len(f.said)-1]) {
			return fmt.Errorf("%s: it said %v", what, f.said)
		}
		return nil
	})
}

// fakePilot serves the same resources to everybody, in both variants, and
// remembers who asked.
type fakePilot struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	*onOff
	changed latest.Value[int]

	mu        sync.Mutex
	resources map[string]map[string]*discoveryv3.Resource
	nodes     map[string]string // node id -> name of the node in its metadata
	nonces    int
	mute      bool // answers no proxy
}

func newFakePilot(t testing.TB, root *pkitest.Root) *fakePilot {
	f := &fakePilot{resources: make(map[string]map[string]*discoveryv3.Resource), nodes: make(map[string]string)}
	f.onOff = newOnOff(t, func() *grpc.Server {
		s := grpc.NewServer(grpc.Creds(serverTLS(t, root, "/writ/pilot", tls.RequireAndVerifyClientCert)))
		discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, f)
		return s
	})
	return f
}

func (f *fakePilot) set(t testing.TB, name string, m proto.Message) {
	t.Helper()
	body := new(anypb.Any)
	if err := anypb.MarshalFrom(body, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	if f.resources[body.GetTypeUrl()] == nil {
		f.resources[body.GetTypeUrl()] = make(map[string]*discoveryv3.Resource)
	}
	f.resources[body.GetTypeUrl()][name] = &discoveryv3.Resource{Name: name, Version: fmt.Sprintf("%x", len(body.GetValue())) + shortHash(body.GetValue()), Resource: body}
	f.mu.Unlock()
	f.changed.Set(0)
}

func shortHash(b []byte) string {
	h := uint64(14695981039346656037) // FNV-1a
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return fmt.Sprintf("-%016x", h)
}

func (f *fakePilot) saw(node string) (agent string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	agent, ok = f.nodes[node]
	return agent, ok
}

type fakeSub struct {
	all  bool
	told map[string]string
	want map[string]bool
	new  bool
}

func (f *fakePilot) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			requests <- r
		}
	}()
	subs := make(map[string]*fakeSub)
	for {
		_, changed := f.changed.Get()
		for url, sub := range subs {
			if resp := f.diff(url, sub); resp != nil {
				if err := s.Send(resp); err != nil {
					return err
				}
			}
		}
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			f.take(subs, r)
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

func (f *fakePilot) take(subs map[string]*fakeSub, r *discoveryv3.DeltaDiscoveryRequest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.GetNode() != nil {
		f.nodes[r.GetNode().GetId()] = r.GetNode().GetMetadata().GetFields()["WRIT_NODE"].GetStringValue()
	}
	sub := subs[r.GetTypeUrl()]
	if sub == nil {
		sub = &fakeSub{told: map[string]string{}, want: map[string]bool{}, new: true, all: len(r.GetResourceNamesSubscribe()) == 0}
		for n, v := range r.GetInitialResourceVersions() {
			sub.told[n] = v
		}
		subs[r.GetTypeUrl()] = sub
	}
	for _, n := range r.GetResourceNamesSubscribe() {
		sub.all = sub.all || n == "*"
		sub.want[n] = true
	}
	for _, n := range r.GetResourceNamesUnsubscribe() {
		delete(sub.want, n)
	}
}

func (f *fakePilot) diff(url string, sub *fakeSub) *discoveryv3.DeltaDiscoveryResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mute {
		return nil
	}
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: url}
	for name, r := range f.resources[url] {
		if (sub.all || sub.want[name]) && sub.told[name] != r.GetVersion() {
			sub.told[name] = r.GetVersion()
			resp.Resources = append(resp.Resources, r)
		}
	}
	if len(resp.GetResources()) == 0 && (!sub.new || !sub.all) {
		return nil
	}
	sub.new = false
	f.nonces++
	resp.Nonce = fmt.Sprint("n", f.nonces)
	return resp
}

// StreamAggregatedResources answers first requests and nothing else.
func (f *fakePilot) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		if r.GetResponseNonce() != "" {
			continue
		}
		resp := &discoveryv3.DiscoveryResponse{TypeUrl: r.GetTypeUrl(), VersionInfo: "v1"}
		f.mu.Lock()
		f.nodes[r.GetNode().GetId()] = r.GetNode().GetMetadata().GetFields()["WRIT_NODE"].GetStringValue()
		for _, res := range f.resources[r.GetTypeUrl()] {
			resp.Resources = append(resp.Resources, res.GetResource())
		}
		f.nonces++
		resp.Nonce = fmt.Sprint("n", f.nonces)
		f.mu.Unlock()
		if err := s.Send(resp); err != nil {
			return err
		}
	}
}
