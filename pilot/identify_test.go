package pilot

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/xds"
)

const proxyID = "sidecar~127.0.1.1~a-1.default~default.svc.cluster.local"

// calling is a context as rpc's server has it for a caller with that SPIFFE ID.
func calling(t *testing.T, id string) context.Context {
	t.Helper()
	if id == "" {
		return context.Background()
	}
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{URIs: []*url.URL{u}}
	return peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}}})
}

func TestIdentify(t *testing.T) {
	for _, tc := range []struct {
		caller, node string
		// want is "<id> <node> <only> <types>", or the code of the refusal.
		want string
	}{
		{"spiffe://cluster.local/writ/node/n1", proxyID, proxyID + " n1  "},
		{"spiffe://cluster.local/writ/node/n1", "router~127.0.1.2~g.istio-system~x", "router~127.0.1.2~g.istio-system~x n1  "},
		{"spiffe://cluster.local/writ/node/n1", "nodeagent", "node~n1  n1 NodePlacement"},
		{"spiffe://cluster.local/writ/node/n1", "service~authz", "node~n1  n1 NodePlacement"},
		{"spiffe://cluster.local/writ/authz", "anything", "service~authz   RegoPolicy,TokenIssuer"},
		{"spiffe://cluster.local/writ/authz", proxyID, "service~authz   RegoPolicy,TokenIssuer"},
		{"spiffe://cluster.local/writ/ratelimit", "", "service~ratelimit   QuotaPolicy"},
		{"spiffe://cluster.local/writ/ca", "", "service~ca   NodePlacement"},
		{"spiffe://cluster.local/writ/pilot", proxyID, "PermissionDenied"},
		{"spiffe://cluster.local/writ/unknown", proxyID, "PermissionDenied"},
		{"spiffe://cluster.local/ns/default/sa/a", proxyID, "PermissionDenied"},
		{"", proxyID, "PermissionDenied"},
	} {
		c, err := identify(calling(t, tc.caller), &corev3.Node{Id: tc.node})
		var types []string
		for _, url := range c.Types {
			types = append(types, shortType(url))
		}
		got := strings.Join([]string{c.ID, c.Node, c.Only, strings.Join(types, ",")}, " ")
		if err != nil {
			got = status.Code(err).String()
		}
		if got != tc.want {
			t.Errorf("%q as %q: got %q, want %q", tc.caller, tc.node, got, tc.want)
		}
		if c.Dynamic {
			t.Errorf("%q as %q is dynamic over mTLS", tc.caller, tc.node)
		}
	}
}

func TestIdentifyPlain(t *testing.T) {
	ctx := context.WithValue(context.Background(), plaintextKey{}, true)
	for _, tc := range []struct {
		node string
		code codes.Code
	}{
		{proxyID, codes.OK},
		{"router~::1~g.istio-system~x", codes.OK},
		{"", codes.InvalidArgument},
		{"service~authz", codes.InvalidArgument},
		{"sidecar~not-an-ip~a.default~x", codes.InvalidArgument},
		{"sidecar~127.0.0.1~a~x", codes.InvalidArgument},
		{"sidecar~127.0.0.1~a.~x", codes.InvalidArgument},
		{"sidecar~127.0.0.1~.default~x", codes.InvalidArgument},
		{"sidecar~127.0.0.1~a.default", codes.InvalidArgument},
		{"waypoint~127.0.0.1~a.default~x", codes.InvalidArgument},
	} {
		c, err := identify(ctx, &corev3.Node{Id: tc.node})
		if status.Code(err) != tc.code {
			t.Errorf("%q: %v, want %v", tc.node, err, tc.code)
		}
		if err == nil && (!c.Dynamic || c.Kind == xds.ServiceKind || len(c.Types) > 0) {
			t.Errorf("%q: %+v", tc.node, c)
		}
	}
}

func TestProxyOfNode(t *testing.T) {
	meta, err := structpb.NewStruct(map[string]any{
		"LABELS": map[string]any{"app": "a"}, "SERVICE_ACCOUNT": "robot", "INTERCEPTION_MODE": "NONE",
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxyOf(&corev3.Node{Id: "sidecar~127.0.1.1~a.b-1.default~x", Metadata: meta})
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "a.b-1" || p.Namespace != "default" || p.Labels["app"] != "a" || p.ServiceAccount != "robot" ||
		p.Interception != model.Explicit || p.Type != model.SidecarProxy || p.Address != netip.MustParseAddr("127.0.1.1") {
		t.Errorf("%+v", p)
	}
	m := &model.Mesh{Services: []*model.Service{{
		Ports:     []model.ServicePort{{Name: "http", Protocol: model.HTTP, Port: 80}, {Name: "other", Port: 81}},
		Endpoints: []*model.Endpoint{{Address: "127.0.1.1", Ports: map[uint32]uint32{80: 8080}}, {Address: "127.0.1.2", Ports: map[uint32]uint32{80: 9090}}},
	}}}
	ports := withPorts(p, offersOf(m)).Ports
	if len(ports) != 1 || ports[0].Port != 8080 || ports[0].Protocol != model.HTTP {
		t.Errorf("ports: %+v", ports)
	}
}

func FuzzProxyOf(f *testing.F) {
	f.Add(proxyID)
	f.Add("router~::1~g.istio-system~x")
	f.Add("sidecar~~~")
	f.Fuzz(func(t *testing.T, id string) {
		p, err := proxyOf(&corev3.Node{Id: id})
		if err == nil && (p.ID != id || p.Name == "" || p.Namespace == "" || !p.Address.IsValid()) {
			t.Errorf("%q gives %+v", id, p)
		}
	})
}

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	good := func() *Config { return &Config{Mesh: dir, Plaintext: "127.0.0.1:15010"} }
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(c *Config){
		"no mesh":                   func(c *Config) { c.Mesh = "" },
		"mesh is not there":         func(c *Config) { c.Mesh = dir + "/no" },
		"nobody to serve":           func(c *Config) { c.Plaintext = "" },
		"plain text everywhere":     func(c *Config) { c.Plaintext = "0.0.0.0:15010" },
		"plain text on no address":  func(c *Config) { c.Plaintext = ":15010" },
		"plain text by name":        func(c *Config) { c.Plaintext = "localhost:15010" },
		"plain text on the network": func(c *Config) { c.Plaintext = "10.0.0.1:15010" },
		"plain text on a socket":    func(c *Config) { c.Plaintext = "unix:///tmp/x" },
		"admin on the network":      func(c *Config) { c.Admin = "127.0.0.1:1" },
		"listen without credential": func(c *Config) { c.Listen = "127.0.0.1:15012" },
		"bad decider":               func(c *Config) { c.Deciders.Authz = "nowhere" },
	} {
		c := good()
		change(c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestServicesGetTheirKindsOnly(t *testing.T) {
	seen := map[string]string{}
	for service, types := range serviceTypes {
		for _, url := range types {
			if other, taken := seen[url]; taken {
				t.Errorf("%s is for %s and %s", url, service, other)
			}
			seen[url] = service
		}
	}
	if slices.Contains(serviceTypes["authz"], xds.NodePlacementType) {
		t.Error("authz may see placements")
	}
}
