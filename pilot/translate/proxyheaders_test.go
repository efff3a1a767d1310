package translate

import (
	"slices"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// TestProxyHeaders: what MeshConfig says of headers reaches every connection manager that
// Istio's reference names for it.
func TestProxyHeaders(t *testing.T) {
	build := func(headers string) map[string]*hcmv3.HttpConnectionManager {
		b := newMesh(t)
		web := b.workload("web-1", "default", "web", map[string]string{"app": "web"}, "http:9000")
		b.service("web", "default", web)
		gateway := b.gateway("in", map[string]string{"istio": "ingressgateway"})
		b.apply("kind: MeshConfig\nspec: {defaultConfig: {proxyHeaders: " + headers + "}}\n" + `
---
kind: Gateway
metadata: {name: in, namespace: istio-system}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
kind: VirtualService
metadata: {name: web}
spec: {hosts: [web], gateways: [mesh, istio-system/in], http: [{rewrite: {authority: other}, route: [{destination: {host: web}}]}]}
`)
		out := map[string]*hcmv3.HttpConnectionManager{}
		sidecar, edge := b.snapshot(web), b.snapshot(gateway)
		for _, r := range append(slices.Clone(sidecar.Listeners), edge.Listeners...) {
			m := new(hcmv3.HttpConnectionManager)
			if err := r.Message.(*listenerv3.Listener).GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(m); err != nil {
				t.Fatal(err)
			}
			out[r.Name] = m
		}
		host := routesOf(t, sidecar, explicitRoutes).GetVirtualHosts()[0]
		if got, want := host.GetIncludeRequestAttemptCount(), headers == "{}"; got != want {
			t.Errorf("%s: attempts are told: %v", headers, got)
		}
		if got, want := host.GetRoutes()[len(host.GetRoutes())-1].GetRoute().GetAppendXForwardedHost(), headers != "{}"; got != want {
			t.Errorf("%s: the host before a rewrite is told: %v", headers, got)
		}
		validate(t, sidecar, edge)
		return out
	}
	const inbound, outbound, edge = "inbound|9000||", explicitRoutes, "gateway|80"
	for name, m := range build("{}") {
		if m.GetGenerateRequestId() != nil || m.GetAppendXForwardedPort() || suppressed(t, m) {
			t.Errorf("%s without a word: %v", name, m)
		}
	}
	said := build(`{server: {value: shop}, requestId: {disabled: true}, attemptCount: {disabled: true}, envoyDebugHeaders: {disabled: true},
		xForwardedHost: {enabled: true}, xForwardedPort: {enabled: true}, forwardedClientCert: SANITIZE, setCurrentClientCertDetails: {subject: false, cert: true}}`)
	for name, m := range said {
		if m.GetGenerateRequestId() == nil || m.GetGenerateRequestId().GetValue() || !m.GetAppendXForwardedPort() || !suppressed(t, m) {
			t.Errorf("%s: %v", name, m)
		}
		if overwrites := m.GetServerHeaderTransformation() == hcmv3.HttpConnectionManager_OVERWRITE && m.GetServerName() == "shop"; overwrites != (name != outbound) {
			t.Errorf("%s names the server %q: %v", name, m.GetServerName(), overwrites)
		}
	}
	if m := said[inbound]; m.GetForwardClientCertDetails() != hcmv3.HttpConnectionManager_SANITIZE || m.GetSetCurrentClientCertDetails().GetSubject().GetValue() || !m.GetSetCurrentClientCertDetails().GetCert() || !m.GetSetCurrentClientCertDetails().GetUri() {
		t.Errorf("of the caller's certificate: %v", m)
	}
	for _, name := range []string{inbound, edge} {
		if m := build("{server: {disabled: true}, attemptCount: {disabled: true}, xForwardedHost: {enabled: true}}")[name]; m.GetServerHeaderTransformation() != hcmv3.HttpConnectionManager_PASS_THROUGH {
			t.Errorf("%s: %v", name, m.GetServerHeaderTransformation())
		}
	}
}

// suppressed says whether the router adds no headers of Envoy's.
func suppressed(t *testing.T, m *hcmv3.HttpConnectionManager) bool {
	t.Helper()
	router := new(routerv3.Router)
	if err := m.GetHttpFilters()[len(m.GetHttpFilters())-1].GetTypedConfig().UnmarshalTo(router); err != nil {
		t.Fatal(err)
	}
	return router.GetSuppressEnvoyHeaders()
}
