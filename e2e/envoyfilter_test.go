package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// envoyFilter writes one with some patches.
func envoyFilter(namespace, name, more string, patches ...string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: %s, namespace: %s}\nspec:\n  %s\n  configPatches:\n", name, namespace, more) +
		"  - " + strings.Join(patches, "\n  - ") + "\n"
}

// luaPatch inserts a filter before the router that adds a header to answers.
func luaPatch(context, header string) string {
	return fmt.Sprintf(`{applyTo: HTTP_FILTER, match: {context: %s, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}}},
     patch: {operation: INSERT_BEFORE, value: {name: mine, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, default_source_code: {inline_string: 'function envoy_on_response(h) h:headers():add(%q, "lua") end'}}}}}`, context, header)
}

// TestEnvoyFilter has Envoys do what pilot does not know of, and come back when one of
// them refuses it.
func TestEnvoyFilter(t *testing.T) {
	t.Parallel()
	a, b := newApp(t, "a"), newApp(t, "b")
	gateway := proctest.Port(t)
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": play("default", "a", map[string]string{"app": "a"}, a.port) + play("default", "b", map[string]string{"app": "b"}, b.port) + play("other", "c", map[string]string{"app": "b"}, b.port) +
			object("Gateway", "default", "edge", fmt.Sprintf(`{selector: {istio: ingressgateway}, servers: [{port: {number: %d, name: http, protocol: HTTP}, hosts: ["*"]}]}`, gateway)) +
			object("VirtualService", "default", "edge", "hosts: ['*']\ngateways: [edge]\nhttp: [{route: [{destination: {host: b}}]}]") +
			object("AuthorizationPolicy", "default", "b", "selector: {matchLabels: {app: b}}\naction: DENY\nrules: [{to: [{operation: {paths: [/secret]}}]}]"),
		"filters.yaml": envoyFilter("default", "inbound", "workloadSelector: {labels: {app: b}}", luaPatch("SIDECAR_INBOUND", "x-inbound"),
			`{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.rbac}}}}}, patch: {operation: REMOVE}}`) +
			envoyFilter("istio-system", "edge", "workloadSelector: {labels: {istio: ingressgateway}}", luaPatch("GATEWAY", "x-edge")) +
			// As Istio's task for local limits has it.
			envoyFilter("other", "limit", "workloadSelector: {labels: {app: b}}",
				`{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}}, patch: {operation: INSERT_BEFORE, value: {name: envoy.filters.http.local_ratelimit, typed_config: {
      "@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit,
      value: {stat_prefix: limit, token_bucket: {max_tokens: 4, tokens_per_fill: 4, fill_interval: 600s}, filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}}}}}}`) +
			envoyFilter("default", "outbound", "workloadSelector: {labels: {app: a}}",
				`{applyTo: VIRTUAL_HOST, match: {context: SIDECAR_OUTBOUND, routeConfiguration: {vhost: {name: "b.default.svc.cluster.local:8000"}}}, patch: {operation: MERGE, value: {response_headers_to_add: [{header: {key: x-vhost, value: merged}}]}}}`,
				`{applyTo: HTTP_ROUTE, match: {context: SIDECAR_OUTBOUND, routeConfiguration: {vhost: {name: "b.default.svc.cluster.local:8000"}}}, patch: {operation: INSERT_FIRST, value: {name: teapot, match: {path: /teapot}, direct_response: {status: 418}}}}`,
				`{applyTo: CLUSTER, match: {context: SIDECAR_OUTBOUND, cluster: {service: b.default.svc.cluster.local}}, patch: {operation: MERGE, value: {connect_timeout: 7s}}}`,
				`{applyTo: EXTENSION_CONFIG, match: {context: SIDECAR_OUTBOUND}, patch: {operation: ADD, value: {name: found, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {response_mutations: [{append: {header: {key: x-found, value: yes}}}]}}}}}`,
				`{applyTo: HTTP_FILTER, match: {context: SIDECAR_OUTBOUND}, patch: {operation: INSERT_FIRST, value: {name: found, config_discovery: {config_source: {ads: {}, resource_api_version: V3}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation]}}}}`),
	}))
	has := func(from, target, header, want string) {
		t.Helper()
		proctest.Eventually(t, 20*time.Second, func() error {
			if got := m.get(from, target); got.status != http.StatusOK || strings.Join(got.header.Values(header), ",") != want {
				return fmt.Errorf("%s from %s: %s, %s %v, want %q", target, from, got, header, got.header.Values(header), want)
			}
			return nil
		})
	}
	has("a-1", "http://b:8000/", "x-inbound", "lua")
	has("a-1", "http://b:8000/", "x-vhost", "merged")
	has("a-1", "http://b:8000/", "x-found", "yes")
	has("a-1", "http://b.other:8000/", "x-inbound", "")
	has("c-1", "http://b.default:8000/", "x-vhost", "")
	if got := spread(12, func(int) answer { return m.get("a-1", "http://b.other:8000/") }); got["b"] != 3 || got["429"] != 9 {
		t.Errorf("of four requests one was sent before, and now: %v", got)
	}
	if got := m.get("a-1", "http://b:8000/teapot"); got.status != http.StatusTeapot {
		t.Errorf("a route of one's own: %s", got)
	}
	if got := do(client(""), request{url: fmt.Sprintf("http://127.0.0.1:%d/", gateway)}); got.header.Get("x-edge") != "lua" || got.header.Get("x-inbound") != "lua" {
		t.Errorf("through the gateway: %s %v", got, got.header)
	}
	if got := m.get("a-1", "http://b:8000/secret"); got.status != http.StatusForbidden {
		t.Errorf("what a policy refuses, after a patch that removes its filter: %s", got)
	}
	if out, _ := m.writ("proxy-config", "clusters", "a-1", m.dir, "--fqdn", "b.default.svc.cluster.local", "-o", "json"); !strings.Contains(out, `"connect_timeout": "7s"`) {
		t.Errorf("the cluster:\n%s", out)
	}
	if out, _ := m.writ("explain", "--from", "a", "--to", "b", m.dir); !strings.Contains(out, "what EnvoyFilter default/inbound changes in the proxy is not told") {
		t.Errorf("explain:\n%s", out)
	}
	t.Log("one that no Envoy takes")
	write(t, m.dir, "broken.yaml", strings.Replace(envoyFilter("default", "broken", "workloadSelector: {labels: {app: b}}", luaPatch("SIDECAR_INBOUND", "x-broken")), "function", "nofunction", 1))
	proctest.Eventually(t, 20*time.Second, func() error {
		if out, code := m.writ("status", m.dir); code != 1 || !strings.Contains(out, "rejected") || !strings.Contains(out, "EnvoyFilter default/broken (broken.yaml:") {
			return fmt.Errorf("exit code %d\n%s", code, out)
		}
		return nil
	})
	has("a-1", "http://b:8000/", "x-inbound", "lua")
	t.Log("and none any more")
	write(t, m.dir, "broken.yaml", "")
	write(t, m.dir, "filters.yaml", "")
	has("a-1", "http://b:8000/", "x-inbound", "")
	has("a-1", "http://b:8000/", "x-vhost", "")
}
