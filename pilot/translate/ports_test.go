package translate

import (
	"net/netip"
	"slices"
	"testing"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestSidecarEndpoints: where a listener of a Sidecar leads to. A port that callers use
// is the program's own, wherever it listens.
func TestSidecarEndpoints(t *testing.T) {
	t.Parallel()
	p := &model.Proxy{Ports: []model.WorkloadPort{
		{Name: "http", Port: 8000, App: 20000, AppAddress: netip.MustParseAddr("127.0.0.1")},
		{Name: "http-v6", Port: 8001, App: 20001, AppAddress: netip.MustParseAddr("::1")},
	}}
	for _, c := range []struct {
		port           uint32
		endpoint, want string
	}{
		{9, "", "127.0.0.1:9"},
		{8000, "", "127.0.0.1:20000"},
		{8001, "", "[::1]:20001"},
		{9, "127.0.0.1:7", "127.0.0.1:7"},
		{9, ":7", "127.0.0.1:7"},
		{9, "0.0.0.0:7", "127.0.0.1:7"},
		{9, "[::]:7", "127.0.0.1:7"},
		{9, "[::1]:7", "[::1]:7"},
		{8000, "[::1]:7", "[::1]:7"},
		{8001, "127.0.0.1:7", "127.0.0.1:7"},
		{8001, "0.0.0.0:7", "[::1]:7"}, // where the program of that port listens
		{9, "127.0.0.1:8000", "127.0.0.1:20000"},
		{9, "[::1]:8000", "127.0.0.1:20000"},
		{9, "0.0.0.0:8001", "[::1]:20001"},
		{9, "unix:///tmp/s", "/tmp/s"},
	} {
		sidecar := &model.Sidecar{Spec: &networking.Sidecar{Ingress: []*networking.IstioIngressListener{{
			Port: &networking.SidecarPort{Number: c.port, Protocol: "HTTP", Name: "http"}, DefaultEndpoint: c.endpoint,
		}}}}
		ports := inboundPorts(p, sidecar)
		if len(ports) != 1 || ports[0].Port != c.port {
			t.Fatalf("%d to %q: %+v", c.port, c.endpoint, ports)
		}
		got := ports[0].AppSocket
		if got == "" {
			got = netip.AddrPortFrom(ports[0].AppAddress, uint16(ports[0].App)).String()
		}
		if got != c.want {
			t.Errorf("%d to %q leads to %s, want %s", c.port, c.endpoint, got, c.want)
		}
	}
}

// TestAuthoritiesOfAddresses: what a client writes for an IPv6 address has brackets,
// with a port and without.
func TestAuthoritiesOfAddresses(t *testing.T) {
	t.Parallel()
	s := &scope{t: &Translator{mesh: &model.Mesh{DomainSuffix: "cluster.local"}}}
	hosts := s.hostForms(&model.Service{Hostname: "a.example", Addresses: []string{"::1", "127.0.0.1"}})
	for _, c := range []struct {
		name      string
		got, want []string
	}{
		{"explicit, port 80", explicitDomains(hosts, 80), []string{"a.example:80", "a.example", "[::1]:80", "[::1]", "127.0.0.1:80", "127.0.0.1"}},
		{"explicit, port 8080", explicitDomains(hosts, 8080), []string{"a.example:8080", "[::1]:8080", "127.0.0.1:8080"}},
		{"redirected", portDomains(hosts, 8080), []string{"a.example", "a.example:8080", "[::1]", "[::1]:8080", "127.0.0.1", "127.0.0.1:8080"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, c.got, c.want)
		}
	}
}

// TestGatewaySecrets: whoever names a secret of another namespace does not get it, even
// if the files were not checked.
func TestGatewaySecrets(t *testing.T) {
	t.Parallel()
	secrets := map[string]*model.Secret{}
	for _, name := range []string{"istio-system/root", "istio-system/both", "team/own", "team/both", "other/theirs"} {
		secrets[name] = &model.Secret{Meta: model.Meta{Ref: model.Ref{Name: name}}}
	}
	tr := &Translator{mesh: &model.Mesh{Secrets: secrets}}
	p := &model.Proxy{Namespace: "istio-system"}
	s := &gatewayServer{object: &model.Gateway{Meta: model.Meta{Ref: model.Ref{Namespace: "team", Name: "g"}}}}
	for name, want := range map[string]string{
		"root": "istio-system/root", "own": "team/own", "both": "team/both", "kubernetes://both": "team/both",
		"istio-system/both": "istio-system/both", "team/own": "team/own", "kubernetes://istio-system/root": "istio-system/root",
		"theirs": "", "other/theirs": "", "kubernetes://other/theirs": "", "team/root": "", "istio-system/own": "", "missing": "",
	} {
		got := ""
		if secret := tr.gatewaySecret(p, s, name); secret != nil {
			got = secret.Name
		}
		if got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
