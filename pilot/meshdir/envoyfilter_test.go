package meshdir

import (
	"strings"
	"testing"
)

// TestEnvoyFilterIsRead: what is accepted, besides the warning that each of them gets, and
// what is warned of because it has no effect.
func TestEnvoyFilterIsRead(t *testing.T) {
	for name, c := range map[string]struct{ patch, warning string }{
		"a filter":                {patch: `{applyTo: HTTP_FILTER, patch: {operation: INSERT_FIRST, value: {name: envoy.filters.http.lua, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}}}`},
		"before one of Writ's":    {patch: `{applyTo: HTTP_FILTER, match: {listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: writ.deny}}}}}, patch: {operation: INSERT_BEFORE, value: {name: x}}}`},
		"a cluster of a service":  {patch: `{applyTo: CLUSTER, match: {cluster: {service: a.example}}, patch: {operation: MERGE, value: {connectTimeout: 3s}}}`},
		"a listener":              {patch: `{applyTo: LISTENER, patch: {operation: ADD, value: {name: l, address: {socket_address: {address: 0.0.0.0, port_value: 9999}}}}}`},
		"removed without a value": {patch: `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {vhost: {name: x}}}, patch: {operation: REMOVE}}`},
		"a field nobody knows":    {patch: `{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeoot: 3s}}}`, warning: `unknown field "connect_timeoot": it is left out`},
		"a version of Istio":      {patch: `{applyTo: CLUSTER, match: {proxy: {proxyVersion: '^1\.2.*'}}, patch: {operation: REMOVE}}`, warning: "proxies here have no version of Istio"},
		"metadata of Istio":       {patch: `{applyTo: CLUSTER, match: {proxy: {metadata: {a: b}}}, patch: {operation: REMOVE}}`, warning: "proxies here have no metadata of Istio"},
		"waypoints":               {patch: `{applyTo: CLUSTER, match: {context: WAYPOINT}, patch: {operation: REMOVE}}`, warning: "there are no waypoints here"},
		"the bootstrap":           {patch: `{applyTo: BOOTSTRAP, patch: {operation: MERGE, value: {}}}`, warning: "before pilot is asked"},
		"a filter of a listener":  {patch: `{applyTo: LISTENER, match: {listener: {filterChain: {filter: {name: x}}}}, patch: {operation: REMOVE}}`, warning: "has no effect on LISTENER"},
		"a name of long ago":      {patch: `{applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {name: envoy.tcp_proxy}}}}, patch: {operation: REMOVE}}`, warning: "envoy.tcp_proxy is a name of long ago"},
		"a port of the outside":   {patch: `{applyTo: HTTP_FILTER, match: {context: SIDECAR_OUTBOUND, listener: {portNumber: 80}}, patch: {operation: INSERT_FIRST, value: {name: x}}}`, warning: "one listener for all ports"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newParser(&Options{}, false).parse("x.yaml", []byte("apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: x}\nspec: {configPatches: ["+c.patch+"]}\n"))
			var said []string
			for _, p := range f.problems[min(1, len(f.problems)):] {
				if p.Severity != Warning {
					t.Errorf("%s", p)
				}
				said = append(said, p.Message)
			}
			if c.warning == "" && len(said) > 0 || c.warning != "" && (len(said) != 1 || !strings.Contains(said[0], c.warning)) {
				t.Errorf("%q, want %q", said, c.warning)
			}
			if len(f.problems) == 0 || f.problems[0].Field != "spec" || f.problems[0].Severity != Warning {
				t.Errorf("nobody is warned that it is the last resort: %v", f.problems)
			}
		})
	}
}
