package stack

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/meshdir"
)

func planned(t *testing.T, files map[string]string) (plan, error) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &Stack{p: &paths{dir: dir, state: t.TempDir()}, addr: open(t, filepath.Join(t.TempDir(), "addresses.json"))}
	return s.plan()
}

const twoGateways = `
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {replicas: 2, ports: [{name: http, port: 80}, {name: grpc-admin, port: 81, app: 29999}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: one, namespace: istio-system}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 18080, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: two, namespace: shop}
spec: {selector: {gateway: two}, servers: [{port: {number: 18080, name: http, protocol: HTTP}, hosts: ["*"]}]}
`

func TestPlan(t *testing.T) {
	p, err := planned(t, map[string]string{"workloads.yaml": twoGateways})
	if err != nil {
		t.Fatal(err)
	}
	byKey := map[string]replica{}
	for _, r := range p.replicas {
		byKey[r.key()] = r
	}
	if len(byKey) != 4 {
		t.Fatalf("%d replicas: %v", len(byKey), byKey)
	}
	one, two := byKey["istio-system/one"], byKey["istio-system/two"]
	if one.url != "http://127.0.0.1:18080" || !strings.HasSuffix(two.url, ":18080") || two.address == one.address {
		t.Errorf("gateways at %s and %s", one.url, two.url)
	}
	if a, b := one.instance.Spec.ServiceAccount, two.instance.Spec.ServiceAccount; a != "istio-ingressgateway-service-account" || b != "two" {
		t.Errorf("gateways run as %s and %s", a, b)
	}
	web := byKey["shop/web-2"]
	if ports := web.instance.Spec.Ports; len(ports) != 2 || ports[0].App < firstAppPort || ports[0].App == byKey["shop/web-1"].instance.Spec.Ports[0].App || ports[1].App != 29999 {
		t.Errorf("ports %+v", ports)
	}
	if web.instance.Spec.ServiceAccount != "default" || web.workload != "web" || web.address == byKey["shop/web-1"].address {
		t.Errorf("%+v", web)
	}
}

func TestPlanRefusesToGuess(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"nothing to run":     {map[string]string{"x.yaml": ""}, "nothing to run"},
		"mistake in a mesh":  {map[string]string{"workloads.yaml": twoGateways, "mesh.yaml": "trustDomian: x"}, "mesh.yaml:1"},
		"mistake in a work":  {map[string]string{"a.yaml": strings.Replace(twoGateways, "replicas", "replcias", 1)}, "LocalWorkload shop/web"},
		"unreadable workers": {map[string]string{"workloads.yaml": "a: [\n"}, "workloads.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := planned(t, tc.files); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestPlanGoesOnWithMistakesInPolicies(t *testing.T) {
	p, err := planned(t, map[string]string{"workloads.yaml": twoGateways, "policy.yaml": "kind: AuthorizationPolicy\nspec: {actoin: DENY}\n"})
	if err != nil || len(p.replicas) != 4 {
		t.Errorf("%d replicas, %v", len(p.replicas), err)
	}
}

// TestTodo: what is still to come is told by replica.
func TestTodo(t *testing.T) {
	one := func(name, command string) replica {
		return replica{instance: meshdir.Instance{Name: name, Namespace: "default"}, command: []string{command}, where: "LocalWorkload default/" + name}
	}
	have := plan{replicas: []replica{one("goes", "x"), one("stays", "x"), one("changes", "x")}}
	want := plan{replicas: []replica{one("stays", "x"), one("changes", "y"), one("comes", "x")}}
	got := todo(have.byKey(), want)
	if want := []string{
		"LocalWorkload default/changes: changes is being replaced",
		"LocalWorkload default/comes: comes is being started",
		"goes is being ended",
	}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := todo(want.byKey(), want); len(got) > 0 {
		t.Errorf("nothing is to be done, and it says %q", got)
	}
}
