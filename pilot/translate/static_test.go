package translate

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/pilot/envoy"
)

// toJSON gives a message as JSON values, nested Anys included.
func toJSON(tb testing.TB, m proto.Message) map[string]any {
	tb.Helper()
	raw, err := protojson.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(raw, &out); err != nil {
		tb.Fatal(err)
	}
	return out
}

// staticBootstrap turns a snapshot into a bootstrap without any server: routes
// go into their connection managers, endpoints into their clusters. secrets are
// static TLS secrets; with none, SDS stays as it is.
func staticBootstrap(tb testing.TB, bin string, s *Snapshot, admin string, secrets []any) map[string]any {
	tb.Helper()
	routes, endpoints := map[string]any{}, map[string]any{}
	for _, r := range s.Routes {
		routes[r.Name] = toJSON(tb, r.Message)
	}
	for _, r := range s.Endpoints {
		endpoints[r.Name] = toJSON(tb, r.Message)
	}
	var clusters, listeners []any
	for _, r := range s.Clusters {
		c := toJSON(tb, r.Message)
		if _, ok := c["edsClusterConfig"]; ok {
			delete(c, "edsClusterConfig")
			c["type"] = "STATIC"
			c["loadAssignment"] = endpoints[r.Name]
			if c["loadAssignment"] == nil {
				tb.Errorf("cluster %s has no endpoints resource", r.Name)
			}
		}
		clusters = append(clusters, c)
	}
	for _, r := range s.Listeners {
		listeners = append(listeners, toJSON(tb, forEnvoy(tb, bin, r.Message)))
	}
	clusters = append(clusters, map[string]any{
		"name": envoy.AgentCluster, "type": "STATIC", "connectTimeout": "1s",
		"loadAssignment": map[string]any{"clusterName": envoy.AgentCluster, "endpoints": []any{map[string]any{"lbEndpoints": []any{
			map[string]any{"endpoint": map[string]any{"address": map[string]any{"pipe": map[string]any{"path": "/nonexistent/agent.sock"}}}},
		}}}},
		"typedExtensionProtocolOptions": map[string]any{envoy.HTTPOptionsKey: toJSON(tb, envoy.HTTP2Upstream(false)[envoy.HTTPOptionsKey])},
	})
	resources := map[string]any{"clusters": clusters, "listeners": listeners}
	if secrets != nil {
		resources["secrets"] = secrets
	}
	extensions := map[string]any{}
	for _, r := range s.Extensions {
		extensions[r.Name] = toJSON(tb, r.Message)["typedConfig"]
	}
	inlineFilters(tb, resources, extensions)
	inline(tb, resources, routes, secrets != nil)
	host, port := splitAddress(tb, admin)
	return map[string]any{
		"node":            map[string]any{"id": "test", "cluster": "test"},
		"layeredRuntime":  map[string]any{"layers": []any{map[string]any{"name": "admin", "adminLayer": map[string]any{}}}},
		"admin":           map[string]any{"address": map[string]any{"socketAddress": map[string]any{"address": host, "portValue": port}}},
		"staticResources": resources,
	}
}

// forEnvoy gives what that Envoy gets of a resource.
func forEnvoy(tb testing.TB, bin string, m proto.Message) proto.Message {
	tb.Helper()
	if !strings.Contains(bin, "envoy-"+envoytest.Oldest) {
		return m
	}
	body, err := packed(m)
	if err == nil {
		body, err = ForOlderEnvoys(body)
	}
	if err == nil {
		m, err = body.UnmarshalNew()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// staticSecret is the name of a secret in a bootstrap, which is no other string there.
func staticSecret(name string) string { return "secret " + name }

// inline replaces, in place, references to RDS and (with static secrets) to SDS.
func inline(tb testing.TB, v any, routes map[string]any, secrets bool) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			inline(tb, e, routes, secrets)
		}
	case map[string]any:
		if rds, ok := v["rds"].(map[string]any); ok {
			name := rds["routeConfigName"].(string)
			if routes[name] == nil {
				tb.Errorf("route configuration %s is referred to but not there", name)
			}
			delete(v, "rds")
			v["routeConfig"] = routes[name]
		}
		if _, ok := v["sdsConfig"]; ok && secrets {
			delete(v, "sdsConfig")
			v["name"] = staticSecret(v["name"].(string))
		}
		for _, e := range v {
			inline(tb, e, routes, secrets)
		}
	}
}

// inlineFilters replaces, in place, references to filters that are resources of their
// own.
func inlineFilters(tb testing.TB, v any, extensions map[string]any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			inlineFilters(tb, e, extensions)
		}
	case map[string]any:
		if _, ok := v["configDiscovery"]; ok {
			name := v["name"].(string)
			if extensions[name] == nil {
				tb.Errorf("filter %s is referred to but not there", name)
			}
			delete(v, "configDiscovery")
			v["typedConfig"] = extensions[name]
		}
		for _, e := range v {
			inlineFilters(tb, e, extensions)
		}
	}
}

func writeJSON(tb testing.TB, path string, v any) {
	tb.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// joinedBootstraps joins bootstraps of which each has its own clusters and secrets.
func joinedBootstraps(bootstraps []map[string]any) map[string]any {
	all := map[string][]any{}
	for i, b := range bootstraps {
		resources, names := b["staticResources"].(map[string]any), map[string]string{}
		for _, kind := range []string{"clusters", "listeners", "secrets"} {
			list, _ := resources[kind].([]any)
			for _, r := range list {
				name := r.(map[string]any)["name"].(string)
				names[name] = fmt.Sprintf("%s#%d", name, i)
			}
		}
		renamed(resources, names)
		for kind, list := range resources {
			all[kind] = append(all[kind], list.([]any)...)
		}
	}
	whole := bootstraps[0]
	whole["staticResources"] = all
	return whole
}

// renamed replaces strings wherever they stand.
func renamed(v any, names map[string]string) any {
	switch v := v.(type) {
	case string:
		if to, ok := names[v]; ok {
			return to
		}
	case []any:
		for i, e := range v {
			v[i] = renamed(e, names)
		}
	case map[string]any:
		for k, e := range v {
			v[k] = renamed(e, names)
		}
	}
	return v
}

// validate runs both Envoys over the snapshots in validate mode, over all at once.
func validate(t *testing.T, snapshots ...*Snapshot) {
	t.Helper()
	for _, bin := range envoytest.All(t) {
		path := filepath.Join(t.TempDir(), "bootstrap.json")
		var all []map[string]any
		for i, s := range snapshots {
			one := staticBootstrap(t, bin, s, "127.0.0.1:0", nil)
			for _, l := range one["staticResources"].(map[string]any)["listeners"].([]any) {
				l.(map[string]any)["address"].(map[string]any)["socketAddress"].(map[string]any)["address"] = fmt.Sprintf("127.1.%d.1", i)
			}
			all = append(all, one)
		}
		writeJSON(t, path, joinedBootstraps(all))
		out, err := exec.CommandContext(t.Context(), bin, "--mode", "validate", "-c", path, "--log-level", "error", "--disable-hot-restart").CombinedOutput()
		if err != nil {
			t.Errorf("%s refuses the configuration: %v\n%s", bin, err, out)
		}
	}
}
