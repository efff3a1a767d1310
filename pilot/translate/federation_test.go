package translate

import (
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// verifies gives the secret with the roots of a TLS context and the names that its
// peers may have.
func verifies(c *tlsv3.CommonTlsContext) (secret string, names []string) {
	combined := c.GetCombinedValidationContext()
	for _, m := range combined.GetDefaultValidationContext().GetMatchTypedSubjectAltNames() {
		if m.GetSanType() == tlsv3.SubjectAltNameMatcher_URI {
			names = append(names, m.GetMatcher().GetExact()+m.GetMatcher().GetPrefix())
		}
	}
	return combined.GetValidationContextSdsSecretConfig().GetName(), names
}

// TestRootsOfOtherTrustDomains: who accepts another trust domain verifies with its
// roots there where its identities may be met, and nowhere else.
func TestRootsOfOtherTrustDomains(t *testing.T) {
	var all []*Snapshot
	for name, tc := range map[string]struct {
		federated []string
		server    string
		clients   []string
		foreign   string
	}{
		"alone":     {nil, "ROOTCA", []string{"spiffe://cluster.local/ns/"}, "ROOTCA"},
		"federated": {[]string{"b.example"}, "FEDERATED", []string{"spiffe://cluster.local/ns/", "spiffe://b.example/"}, "FEDERATED"},
		"another":   {[]string{"c.example"}, "FEDERATED", []string{"spiffe://cluster.local/ns/", "spiffe://c.example/"}, "ROOTCA"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newMesh(t)
			b.mesh.FederatedDomains = tc.federated
			client := b.workload("client-1", "default", "client", nil, "http:9000")
			b.service("client", "default", client)
			b.service("reviews", "default", b.workload("reviews-1", "default", "reviews", nil, "http:9080"))
			b.apply(`
kind: ServiceEntry
metadata: {name: shop}
spec:
  hosts: [shop.b.example]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 192.0.2.1}]
  subjectAltNames: [spiffe://b.example/ns/default/sa/shop]
---
kind: DestinationRule
metadata: {name: shop}
spec:
  host: shop.b.example
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
`)
			s := b.snapshot(client)
			for cluster, want := range map[string]struct {
				secret string
				names  []string
			}{
				"outbound|80||shop.b.example":                      {tc.foreign, []string{"spiffe://b.example/ns/default/sa/shop"}},
				"outbound|9080||reviews.default.svc.cluster.local": {"ROOTCA", []string{"spiffe://cluster.local/ns/default/sa/reviews"}},
			} {
				i := slices.IndexFunc(s.Clusters, func(r Resource) bool { return r.Name == cluster })
				if i < 0 {
					t.Fatalf("no cluster %s", cluster)
				}
				ctx := new(tlsv3.UpstreamTlsContext)
				if err := s.Clusters[i].Message.(*clusterv3.Cluster).GetTransportSocket().GetTypedConfig().UnmarshalTo(ctx); err != nil {
					t.Fatal(err)
				}
				if secret, names := verifies(ctx.GetCommonTlsContext()); secret != want.secret || !slices.Equal(names, want.names) {
					t.Errorf("%s: verified by %s, names %v", cluster, secret, names)
				}
			}
			i := slices.IndexFunc(s.Listeners, func(r Resource) bool { return r.Name == inboundName(9000) })
			ctx := new(tlsv3.DownstreamTlsContext)
			if err := s.Listeners[i].Message.(*listenerv3.Listener).GetFilterChains()[0].GetTransportSocket().GetTypedConfig().UnmarshalTo(ctx); err != nil {
				t.Fatal(err)
			}
			if secret, names := verifies(ctx.GetCommonTlsContext()); secret != tc.server || !slices.Equal(names, tc.clients) {
				t.Errorf("inbound: verified by %s, names %v", secret, names)
			}
			all = append(all, s)
		})
	}
	validate(t, all...)
}
