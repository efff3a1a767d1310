package translate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestAuthorityPattern: the expression of a block has the addresses of the block and no
// others, for every length of prefix.
func TestAuthorityPattern(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	address := func() netip.Addr {
		n := random.Uint32()
		return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	}
	for bits := range 33 {
		for range 20 {
			block := netip.PrefixFrom(address(), bits).Masked()
			whole, err := regexp.Compile("^(?:" + authorityPattern(block, 443) + ")$")
			if err != nil {
				t.Fatal(err)
			}
			last := block.Addr()
			for i, b := 0, last.As4(); i < 32-bits; i++ {
				b[3-i/8] |= 1 << (i % 8)
				last = netip.AddrFrom4(b)
			}
			for _, a := range []netip.Addr{block.Addr(), last, block.Addr().Prev(), last.Next(), address(), address()} {
				if got := whole.MatchString(fmt.Sprintf("%s:443", a)); got != block.Contains(a) {
					t.Fatalf("%s in %s: %v by %s", a, block, got, whole)
				}
			}
		}
	}
	block := netip.MustParsePrefix("10.1.0.0/16")
	for authority, want := range map[string]bool{
		"10.1.2.3": true, "10.1.2.3:80": true, "10.1.2.3:8080": false, "10.1.2.300": false, "10.1.2.3.example.com": false, "10.1.2": false, "10x1.2.3": false,
	} {
		if got := regexp.MustCompile("^(?:" + authorityPattern(block, 80) + ")$").MatchString(authority); got != want {
			t.Errorf("%s: %v", authority, got)
		}
	}
}

// TestRangesOfServices: the routes of a narrow range go before those of a wide one, and
// both before what is for unknown names.
func TestRangesOfServices(t *testing.T) {
	b := newMesh(t)
	client := b.workload("web-1", "default", "web", nil)
	b.apply(`
kind: ServiceEntry
metadata: {name: wide}
spec: {hosts: [wide.example], addresses: [10.0.0.0/8, 2001:db8::/32], ports: [{number: 443, name: tls, protocol: TLS}], resolution: NONE}
---
kind: ServiceEntry
metadata: {name: narrow}
spec: {hosts: [narrow.example], addresses: [10.1.0.0/16, 10.2.3.4/32], ports: [{number: 443, name: tls, protocol: TLS}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}
---
kind: ServiceEntry
metadata: {name: port}
spec: {hosts: [port.example], ports: [{number: 27017, name: tcp, protocol: TCP}, {number: 80, name: http, protocol: HTTP}], resolution: NONE}
`)
	s := b.snapshot(client)
	var got []string
	for _, vh := range routesOf(t, s, explicitRoutes).GetVirtualHosts() {
		if !slices.Contains(vh.GetDomains(), "*") {
			continue
		}
		for _, r := range vh.GetRoutes() {
			got = append(got, fmt.Sprint(r.GetName(), " ", r.GetRoute().GetCluster(), " ", len(r.GetMatch().GetHeaders())))
		}
	}
	want := []string{
		"connect outbound|443||narrow.example 1", "default outbound|443||narrow.example 1",
		"connect outbound|443||wide.example 1", "default outbound|443||wide.example 1",
		"connect outbound|27017||port.example 1", "default outbound|27017||port.example 1",
		"connect PassthroughCluster 0", "default PassthroughCluster 0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	validate(t, s)
}

// TestDestinationSubnets: a tcp rule holds for the services whose addresses are within.
func TestDestinationSubnets(t *testing.T) {
	for subnets, want := range map[string]string{
		"[10.1.0.0/16]": "outbound|9000||other.example", "[10.2.0.0/16]": "outbound|9000||db.example",
		"[192.0.2.0/24, 10.1.2.3]": "outbound|9000||other.example", "[10.1.2.4]": "outbound|9000||db.example",
	} {
		b := newMesh(t)
		client := b.workload("web-1", "default", "web", nil)
		b.apply(`
kind: ServiceEntry
metadata: {name: db}
spec: {hosts: [db.example], addresses: [10.1.2.3], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}
---
kind: ServiceEntry
metadata: {name: other}
spec: {hosts: [other.example], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 192.0.2.2}]}
---
kind: VirtualService
metadata: {name: db}
spec: {hosts: [db.example], tcp: [{match: [{destinationSubnets: ` + subnets + `}], route: [{destination: {host: other.example}}]}]}
`)
		for _, vh := range routesOf(t, b.snapshot(client), explicitRoutes).GetVirtualHosts() {
			if vh.GetName() == "db.example:9000" && vh.GetRoutes()[0].GetRoute().GetCluster() != want {
				t.Errorf("%s: %v, want %s", subnets, vh.GetRoutes()[0].GetRoute(), want)
			}
		}
	}
}

// TestTunnelThroughProxy: a destination with tunnel settings is asked for another tunnel,
// by name in a tunnel of the explicit proxy, and never by requests.
func TestTunnelThroughProxy(t *testing.T) {
	b := newMesh(t)
	client := b.workload("web-1", "default", "web", nil)
	b.apply(`
kind: ServiceEntry
metadata: {name: proxy}
spec: {hosts: [proxy.example], ports: [{number: 3128, name: http2, protocol: HTTP2}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}
---
kind: ServiceEntry
metadata: {name: far}
spec: {hosts: [far.example], ports: [{number: 443, name: tls, protocol: TLS}], resolution: STATIC, endpoints: [{address: 192.0.2.2}]}
---
kind: DestinationRule
metadata: {name: proxy}
spec: {host: proxy.example, subsets: [{name: far, trafficPolicy: {tunnel: {targetHost: real.example, targetPort: 8443}}}], trafficPolicy: {tunnel: {targetHost: else.example, targetPort: 1}}}
---
kind: VirtualService
metadata: {name: far}
spec: {hosts: [far.example], tls: [{match: [{sniHosts: [far.example]}], route: [{destination: {host: proxy.example, subset: far, port: {number: 3128}}}]}]}
`)
	s := b.snapshot(client)
	seen := 0
	for _, vh := range routesOf(t, s, explicitRoutes).GetVirtualHosts() {
		connect := vh.GetRoutes()[0].GetRoute()
		switch vh.GetName() {
		case "far.example:443":
			seen++
			if connect.GetCluster() != "outbound|3128|far|proxy.example" || connect.GetHostRewriteLiteral() != "real.example:8443" || connect.GetUpgradeConfigs()[0].GetConnectConfig() != nil {
				t.Errorf("to the far host: %v", connect)
			}
		case "proxy.example:3128":
			seen++
			if connect.GetHostRewriteSpecifier() != nil || connect.GetUpgradeConfigs()[0].GetConnectConfig() == nil {
				t.Errorf("to the proxy itself: %v", connect)
			}
		}
	}
	if seen != 2 {
		t.Errorf("%d of 2 virtual hosts", seen)
	}
	validate(t, s)
}

// TestUnregisteredServerNames: a tls rule holds for the names that it gives, though one
// host alone below the wildcard is registered, as in Istio's task of wildcard hosts.
func TestUnregisteredServerNames(t *testing.T) {
	b := newMesh(t)
	client := b.workload("web-1", "default", "web", nil)
	pod := b.workload("pod-1", "default", "pod", nil)
	pod.Interception = model.Redirect
	b.apply(`
kind: ServiceEntry
metadata: {name: www}
spec: {hosts: [www.wiki.example], ports: [{number: 443, name: tls, protocol: TLS}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}
---
kind: ServiceEntry
metadata: {name: out}
spec: {hosts: [out.example], ports: [{number: 8443, name: tls, protocol: TLS}], resolution: STATIC, endpoints: [{address: 192.0.2.2}]}
---
kind: VirtualService
metadata: {name: wiki}
spec:
  hosts: ["*.wiki.example"]
  tls:
  - {match: [{port: 443, sniHosts: [own.wiki.example]}], route: [{destination: {host: www.wiki.example, port: {number: 443}}}]}
  - {match: [{port: 443, sniHosts: ["*.wiki.example"]}], route: [{destination: {host: out.example, port: {number: 8443}}}]}
`)
	s := b.snapshot(client)
	got := map[string]string{}
	for _, vh := range routesOf(t, s, explicitRoutes).GetVirtualHosts() {
		got[vh.GetName()] = vh.GetRoutes()[0].GetRoute().GetCluster()
	}
	const out, www = "outbound|8443||out.example", "outbound|443||www.wiki.example"
	for name, want := range map[string]string{"www.wiki.example:443": out, "*.wiki.example:443": out, "own.wiki.example:443": www, "*.wiki.example:8443": "", "out.example:8443": out} {
		if got[name] != want {
			t.Errorf("%s goes to %q, want %q", name, got[name], want)
		}
	}
	redirected := b.snapshot(pod)
	chains := map[string]bool{}
	for _, r := range redirected.Listeners {
		for _, c := range r.Message.(*listenerv3.Listener).GetFilterChains() {
			for _, name := range c.GetFilterChainMatch().GetServerNames() {
				chains[r.Name+" "+name] = true
			}
		}
	}
	if !chains["0.0.0.0_443 *.wiki.example"] || !chains["0.0.0.0_443 own.wiki.example"] {
		t.Errorf("chains for %v", chains)
	}
	validate(t, s, redirected)
}

// TestCredentialsOfGateways: a rule for a gateway may name a secret of where the gateway
// runs; sidecars show no certificate then.
func TestCredentialsOfGateways(t *testing.T) {
	b := newMesh(t)
	client := b.workload("web-1", "default", "web", nil)
	gateway := b.gateway("out", map[string]string{"istio": "egressgateway"})
	b.mesh.Secrets["istio-system/client"] = &model.Secret{Cert: []byte("cert"), Key: []byte("key"), CA: []byte("ca")}
	b.apply(`
kind: Gateway
metadata: {name: out, namespace: istio-system}
spec: {selector: {istio: egressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
kind: ServiceEntry
metadata: {name: far}
spec: {hosts: [far.example], ports: [{number: 443, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 192.0.2.2}]}
---
kind: DestinationRule
metadata: {name: far}
spec: {host: far.example, trafficPolicy: {tls: {mode: MUTUAL, credentialName: client}}}
---
kind: VirtualService
metadata: {name: far}
spec: {hosts: [far.example], gateways: [istio-system/out], http: [{route: [{destination: {host: far.example}}]}]}
`)
	for p, want := range map[*model.Proxy]int{client: 0, gateway: 1} {
		found := false
		for _, c := range b.snapshot(p).Clusters {
			if c.Name != "outbound|443||far.example" {
				continue
			}
			found = true
			ctx := new(tlsv3.UpstreamTlsContext)
			if err := c.Message.(*clusterv3.Cluster).GetTransportSocket().GetTypedConfig().UnmarshalTo(ctx); err != nil {
				t.Fatal(err)
			}
			common := ctx.GetCommonTlsContext()
			if got := len(common.GetTlsCertificates()); got != want {
				t.Errorf("%s shows %d certificates, want %d", p.Name, got, want)
			}
			if got := string(common.GetValidationContext().GetTrustedCa().GetInlineBytes()); (got == "ca") != (want == 1) {
				t.Errorf("%s trusts %q", p.Name, got)
			}
		}
		if !found {
			t.Errorf("%s has no cluster", p.Name)
		}
	}
}
