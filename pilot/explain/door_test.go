package explain

import (
	"net/netip"
	"testing"

	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// gatewayMesh is a mesh with a gateway and one policy for it.
func gatewayMesh(rule *security.Rule, trusted uint32) *model.Mesh {
	server := func(port uint32, protocol, host string, mode networking.ServerTLSSettings_TLSmode) *networking.Server {
		s := &networking.Server{Port: &networking.Port{Number: port, Protocol: protocol}, Hosts: []string{host}}
		if protocol != "HTTP" {
			s.Tls = &networking.ServerTLSSettings{Mode: mode}
		}
		return s
	}
	meta := func(kind string) model.Meta {
		return model.Meta{Ref: model.Ref{Kind: kind, Namespace: "istio-system", Name: "in"}}
	}
	return &model.Mesh{
		TrustDomain: "cluster.local", RootNamespace: "istio-system",
		Config:  &meshv1.MeshConfig{DefaultConfig: &meshv1.ProxyConfig{GatewayTopology: &meshv1.Topology{NumTrustedProxies: trusted}}},
		Proxies: []*model.Proxy{{Name: "in", Namespace: "istio-system", Type: model.GatewayProxy, ServiceAccount: "in", GatewayPorts: map[uint32]uint32{80: 8080}}},
		Gateways: []*model.Gateway{{Meta: meta("Gateway"), Spec: &networking.Gateway{Servers: []*networking.Server{
			server(80, "HTTP", "*", 0),
			server(443, "HTTPS", "shop/simple.example", networking.ServerTLSSettings_SIMPLE),
			server(443, "HTTPS", "*.mutual.example", networking.ServerTLSSettings_MUTUAL),
			server(8443, "HTTPS", "*", networking.ServerTLSSettings_ISTIO_MUTUAL),
			server(9443, "TLS", "*", networking.ServerTLSSettings_PASSTHROUGH),
		}}}},
		AuthorizationPolicies: []*model.AuthorizationPolicy{{Meta: meta("AuthorizationPolicy"), Spec: &security.AuthorizationPolicy{Rules: []*security.Rule{rule}}}},
	}
}

// TestDoor: who a caller of a gateway is, is what the tls of its Gateway finds out.
func TestDoor(t *testing.T) {
	identity := &security.Rule{From: []*security.Rule_From{{Source: &security.Source{Principals: []string{"*"}}}}}
	name := &security.Rule{When: []*security.Condition{{Key: "connection.sni", Values: []string{"a.mutual.example", "simple.example"}}}}
	const web = "default/web"
	for _, c := range []struct {
		what string
		rule *security.Rule
		q    Question
		want bool
	}{
		{"plain text has no identity", identity, Question{From: web, Port: 8080, Host: "a"}, false},
		{"under the port of the Gateway too", identity, Question{From: web, Port: 80, Host: "a"}, false},
		{"nor has TLS that asks for no certificate", identity, Question{From: web, Port: 443, Host: "simple.example"}, false},
		{"nor TLS that is passed on", identity, Question{From: web, Port: 9443, Host: "simple.example"}, false},
		{"MUTUAL has", identity, Question{From: web, Port: 443, Host: "a.mutual.example:443"}, true},
		{"by the server name", identity, Question{From: web, Port: 443, Host: "simple.example", SNI: "a.mutual.example"}, true},
		{"one of the servers, nobody knows which", identity, Question{From: web, Port: 443}, true},
		{"ISTIO_MUTUAL has", identity, Question{From: web, Port: 8443}, true},
		{"ISTIO_MUTUAL takes nobody else", &security.Rule{}, Question{From: Outside, Port: 8443}, false},
		{"MUTUAL may take others", &security.Rule{}, Question{From: Outside, Port: 443, Host: "a.mutual.example"}, true},
		{"the server name is the host", name, Question{From: Outside, Port: 443, Host: "simple.example"}, true},
		{"with a port", name, Question{From: Outside, Port: 443, Host: "a.mutual.example:443"}, true},
		{"of TLS that is passed on too", name, Question{From: Outside, Port: 9443, Host: "simple.example"}, true},
		{"unless it is another", name, Question{From: Outside, Port: 443, Host: "simple.example", SNI: "b.mutual.example"}, false},
		{"plain text has none", name, Question{From: Outside, Port: 8080, Host: "simple.example", SNI: "simple.example"}, false},
	} {
		m := gatewayMesh(c.rule, 0)
		c.q.To = "in"
		a, err := Request(m, c.q, Deciders{})
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if got := a.Targets[0]; (got.Decision == Allowed) != c.want {
			t.Errorf("%s: %s by %s %v", c.what, got.Decision, got.By, got.Steps)
		}
	}
	for port, want := range map[uint32]int{8080: 0, 8443: 1} {
		callers, err := WhoCan(gatewayMesh(identity, 0), Question{To: "in", Port: port})
		if err != nil {
			t.Fatal(err)
		}
		if got := len(callers[0].Statements); got != want {
			t.Errorf("port %d: %+v", port, callers)
		}
	}
}

// TestTrustedProxies: of X-Forwarded-For a gateway believes what the proxies in front of
// it have said, as many as MeshConfig has.
func TestTrustedProxies(t *testing.T) {
	rule := &security.Rule{From: []*security.Rule_From{{Source: &security.Source{RemoteIpBlocks: []string{"192.0.2.0/24"}}}}}
	for _, c := range []struct {
		trusted        uint32
		source, header string
		want           bool
	}{
		{0, "192.0.2.1", "", true},
		{0, "192.0.2.1", "198.51.100.1", true},
		{0, "198.51.100.1", "192.0.2.1", false},
		{1, "198.51.100.1", "192.0.2.1", true},
		{1, "198.51.100.1", "192.0.2.1, 203.0.113.1", false},
		{1, "192.0.2.1", "203.0.113.1", false},
		{1, "192.0.2.1", "", true},
		{1, "192.0.2.1", "unknown", true},
		{2, "198.51.100.1", "203.0.113.1, 192.0.2.1, 203.0.113.2", true},
		{2, "198.51.100.1", "192.0.2.1, 203.0.113.1, 203.0.113.2", false},
		{2, "192.0.2.1", "203.0.113.2", true},
	} {
		q := Question{From: Outside, To: "in:8080", Host: "a", SourceIP: netip.MustParseAddr(c.source)}
		if c.header != "" {
			q.Headers = map[string]string{"x-forwarded-for": c.header}
		}
		a, err := Request(gatewayMesh(rule, c.trusted), q, Deciders{})
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Targets[0].Decision == Allowed; got != c.want {
			t.Errorf("%+v: allowed %v", c, got)
		}
	}
}
