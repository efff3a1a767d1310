package meshdir

import (
	"slices"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestExternalName: a Service of type ExternalName is another name of a service of
// the mesh, over other such names too, else a host outside of it.
func TestExternalName(t *testing.T) {
	files := exampleFiles(t)
	service := func(name, of, more string) string {
		return "---\napiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {type: ExternalName, externalName: " + of + more + "}\n"
	}
	files["zz.yaml"] = []byte(service("first", "Reviews.default.svc.cluster.local.", "") + service("second", "first.default.svc.cluster.local", ", ports: [{port: 1}]") +
		service("outside", "httpbin.org", ", ports: [{name: http, port: 80}]") + service("portless", "httpbin.org", "") +
		service("over", "Outside.default.svc.cluster.local.", ", ports: [{port: 81}]") +
		service("circle", "round.default.svc.cluster.local", "") + service("round", "circle.default.svc.cluster.local", ""))
	mesh, problems := Parse(files, exampleInstances(t), Options{})
	said := map[string]bool{}
	for _, p := range problems {
		if p.Severity != Warning {
			t.Error(p)
		}
		said[strings.TrimPrefix(p.Object, "Service default/")+" "+p.Field] = true
	}
	for _, want := range []string{"circle spec.externalName", "round spec.externalName", "portless spec.ports"} {
		if !said[want] {
			t.Errorf("nothing is said of %s", want)
		}
	}
	full := func(name string) string { return name + ".default.svc.cluster.local" }
	reviews := mesh.ServiceByHost(full("reviews"), "default")
	if !slices.Equal(reviews.Aliases, []string{full("first"), full("second")}) {
		t.Errorf("aliases of reviews: %v", reviews.Aliases)
	}
	for _, alias := range reviews.Aliases {
		if got := mesh.ServiceByHost(strings.ToUpper(alias), "other"); got != reviews {
			t.Errorf("%s is %v", alias, got)
		}
		if got := mesh.PolicyHost(alias, "default"); got != reviews {
			t.Errorf("to a policy %s is %v", alias, got)
		}
	}
	outside := mesh.ServiceByHost(full("outside"), "default")
	if outside.Resolution != model.DNS || !outside.External || outside.Endpoints[0].Address != "httpbin.org" || outside.Endpoints[0].Ports[80] != 80 {
		t.Errorf("outside: %+v", outside)
	}
	// Another name of that name has its own ports, and the host at the end.
	over := mesh.ServiceByHost(full("over"), "default")
	if over.Resolution != model.DNS || !over.External || len(over.Endpoints) != 1 || over.Endpoints[0].Address != "httpbin.org" || over.Endpoints[0].Ports[81] != 81 || len(over.Endpoints[0].Ports) != 1 {
		t.Errorf("over: %+v", over)
	}
	for _, none := range []string{"circle", "round"} {
		if got := mesh.ServiceByHost(full(none), "default"); got != nil {
			t.Errorf("%s is %v", none, got)
		}
	}
}
