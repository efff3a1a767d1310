package meshdir

import (
	"strconv"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestHoldBack: a file that was refused keeps the content that was accepted until
// it changes, over restarts too, and keeps no other change away.
func TestHoldBack(t *testing.T) {
	entry := func(name, port string) string {
		return "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: " + name + ", namespace: default}\nspec: {hosts: [" + name + ".example], resolution: DNS, ports: [{number: " + port + ", name: http}]}\n"
	}
	dir := t.TempDir()
	options := Options{Dir: dir, LastGood: t.TempDir() + "/good"}
	r := NewReader(options)
	// read gives the mesh and the ports of its services, by name.
	read := func(want string) (*model.Mesh, []Problem) {
		t.Helper()
		mesh, _, problems := r.Read()
		var got []string
		for _, s := range mesh.Services {
			got = append(got, strings.TrimSuffix(s.Hostname, ".example")+":"+s.Ports[0].Name+"/"+strconv.Itoa(int(s.Ports[0].Port)))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("got %v, want %s", got, want)
		}
		return mesh, problems
	}
	ref := func(m *model.Mesh, name string) []model.Ref {
		for _, s := range m.Services {
			if s.Name == name {
				return []model.Ref{s.Ref}
			}
		}
		t.Fatalf("no %s", name)
		return nil
	}
	write(t, dir, "a.yaml", entry("a", "1"))
	write(t, dir, "b.yaml", entry("b", "1"))
	first, _ := read("a:http/1 b:http/1")
	if r.HoldBack(first, ref(first, "a"), "refused") {
		t.Error("held back although nothing was ever accepted")
	}
	r.Accepted(first)
	if r.HoldBack(first, ref(first, "a"), "refused") {
		t.Error("what was accepted is held back")
	}

	write(t, dir, "a.yaml", entry("a", "2"))
	write(t, dir, "c.yaml", entry("c", "1"))
	second, _ := read("a:http/2 b:http/1 c:http/1")
	if !r.HoldBack(second, append(ref(second, "a"), ref(second, "c")...), "envoy-1 refused it: bad") {
		t.Error("nothing is held back")
	}
	_, problems := read("a:http/1 b:http/1")
	if errs := Errors(problems); len(errs) != 2 || errs[0].File != "a.yaml" || errs[0].Line != 1 || !strings.HasPrefix(errs[0].Message, "envoy-1 refused it: bad; ") || errs[1].File != "c.yaml" {
		t.Errorf("problems %v", problems)
	}
	write(t, dir, "b.yaml", entry("b", "2"))
	third, _ := read("a:http/1 b:http/2")
	r.Accepted(third)

	write(t, dir, "a.yaml", entry("a", "3"))
	if _, problems := read("a:http/3 b:http/2"); len(Errors(problems)) != 1 {
		t.Errorf("problems %v", problems)
	}

	// After a restart what was good last is what was accepted.
	write(t, dir, "a.yaml", entry("a", "2"))
	r = NewReader(options)
	again, _ := read("a:http/2 b:http/2 c:http/1")
	if !r.HoldBack(again, append(ref(again, "a"), ref(again, "c")...), "refused") {
		t.Error("nothing is held back after a restart")
	}
	read("a:http/3 b:http/2")
}

// TestStrangersDoNotHoldBack: a reference from another namespace does not keep the
// owner's edit away; one from his own does.
func TestStrangersDoNotHoldBack(t *testing.T) {
	const owner = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a, namespace: default}
spec: {hosts: [a.example], resolution: DNS, ports: [{number: 80, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: default}
spec: {host: a.example, subsets: [{name: v1}SUBSET]}
`
	const rule = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: NAMESPACE}
spec: {hosts: [a.example], exportTo: ["."], http: [{route: [{destination: {host: a.example, subset: v3}}]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other, namespace: NAMESPACE}
spec: {hosts: [other.example], resolution: DNS, ports: [{number: 80, name: http}]}
`
	const deny = `---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: emergency, namespace: default}
spec: {action: DENY, rules: [{}]}
`
	for namespace, strange := range map[string]bool{"aaa": true, "default": false} {
		t.Run(namespace, func(t *testing.T) {
			dir := t.TempDir()
			r := NewReader(Options{Dir: dir})
			write(t, dir, "owner.yaml", strings.Replace(owner, "SUBSET", ", {name: v3}", 1))
			write(t, dir, "rule.yaml", strings.ReplaceAll(rule, "NAMESPACE", namespace))
			if mesh, _, problems := r.Read(); len(Errors(problems)) > 0 || len(mesh.VirtualServices) != 1 {
				t.Fatal(problems)
			}
			write(t, dir, "owner.yaml", strings.Replace(owner, "SUBSET", "", 1)+deny)
			for range 2 { // and it stays so
				mesh, _, problems := r.Read()
				if got := len(mesh.AuthorizationPolicies) == 1; got != strange {
					t.Errorf("the owner's edit is in force: %v, want %v", got, strange)
				}
				if got := len(mesh.VirtualServices) == 0; got != strange {
					t.Errorf("the rule is left out: %v, want %v", got, strange)
				}
				if len(mesh.Services) != 2 {
					t.Errorf("services %v", mesh.Services)
				}
				if errs := Errors(problems); len(errs) == 0 || !strings.Contains(errs[0].String(), "VirtualService "+namespace+"/a") && !strings.Contains(errs[len(errs)-1].String(), "VirtualService "+namespace+"/a") {
					t.Errorf("problems %v", problems)
				}
			}
		})
	}
}
