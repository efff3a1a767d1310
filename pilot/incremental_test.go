package pilot

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/xds"
)

// TestEditsComeToWhatAFreshStartComesTo: whatever is edited, in whatever order, a pilot
// that keeps what did not change gives every client, byte for byte, and says of the
// files what one that has just started does.
func TestEditsComeToWhatAFreshStartComesTo(t *testing.T) {
	const seeds, edits = 2, 15
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			e := &editor{Rand: rand.New(rand.NewPCG(seed, 7)), dir: t.TempDir(), files: map[string]int{}} //nolint:gosec // to be repeated
			e.instances = filepath.Join(t.TempDir(), "instances.yaml")
			for range 30 {
				e.edit(t, 0)
			}
			e.place(t)
			r := meshdir.NewReader(meshdir.Options{Dir: e.dir, InstancesFile: e.instances})
			var current *compiled
			also := besides{revoked: new(model.Revoked)}
			reused := 0
			for i := range edits {
				if i > 0 {
					e.any(t, &also)
				}
				mesh, _, problems := r.Read()
				if errs := meshdir.Errors(problems); len(errs) > 0 {
					t.Fatal(errs)
				}
				c, err := compile(mesh, also, builderAfter(current), current)
				if err != nil {
					t.Fatal(err)
				}
				fresh, _, all := meshdir.NewReader(meshdir.Options{Dir: e.dir, InstancesFile: e.instances}).Read()
				if !slices.Equal(problems, all) {
					t.Fatalf("after %q\n%v\nwant\n%v", e.log, problems, all)
				}
				want, err := compile(fresh, also, xds.NewBuilder(), nil)
				if err != nil {
					t.Fatal(err)
				}
				compareSnapshots(t, c, want)
				if t.Failed() {
					t.Fatalf("after %q", e.log)
				}
				if current != nil && c.snapshot.Hash != current.snapshot.Hash {
					reused += sharedPolicies(c, current)
				}
				current = c
			}
			if reused < edits {
				t.Errorf("%d policies were the same objects after an edit: nothing was kept", reused)
			}
		})
	}
}

func builderAfter(c *compiled) *xds.Builder {
	if c == nil {
		return xds.NewBuilder()
	}
	return xds.NewBuilder(c.snapshot)
}

func sharedPolicies(a, b *compiled) (n int) {
	for p := range a.digests.policies {
		if _, ok := b.digests.policies[p]; ok {
			n++
		}
	}
	return n
}

// compareSnapshots compares by the hashes of contents.
func compareSnapshots(t *testing.T, got, want *compiled) {
	t.Helper()
	if got.snapshot.Hash != want.snapshot.Hash {
		t.Errorf("snapshot %s, want %s", got.snapshot.Hash, want.snapshot.Hash)
	}
	if !slices.Equal(got.failed, want.failed) {
		t.Errorf("failed %q, want %q", got.failed, want.failed)
	}
	for id, config := range want.snapshot.Proxies {
		for _, url := range []string{xds.ClusterType, xds.EndpointType, xds.ListenerType, xds.RouteType, xds.ExtensionType} {
			for _, r := range config.Set(url).Resources() {
				if have := got.snapshot.Proxies[id].Set(url).Get(r.Name); have == nil || have.Version != r.Version {
					t.Errorf("%s has another %s %s", id, url, r.Name)
				}
			}
		}
	}
}

// editor writes a mesh directory at random.
type editor struct {
	*rand.Rand
	dir, instances string
	// files are those that are there, with the number of their objects.
	files map[string]int
	// moved counts changes of what runs.
	moved int
	log   []string
}

var editedApps = []string{"a", "b", "c"}

// any edits a file, what runs, or what is not of the files.
func (e *editor) any(t *testing.T, also *besides) {
	t.Helper()
	switch e.IntN(12) {
	case 0:
		e.place(t)
	case 1:
		also.revoked = &model.Revoked{Sequence: also.revoked.Sequence + 1, Newest: also.revoked.Sequence + 1, Identities: []model.RevokedIdentity{{SPIFFEID: fmt.Sprintf("spiffe://cluster.local/ns/default/sa/%d", e.IntN(9))}}}
		e.log = append(e.log, "revoked")
	case 2:
		also.tokens = &model.RevokedTokens{IDs: map[string][]string{"https://issuer": {fmt.Sprint(e.IntN(9))}}}
		e.log = append(e.log, "tokens")
	case 3:
		also.keys = map[string]string{"https://issuer": fmt.Sprintf(`{"keys":[{"kid":"%d"}]}`, e.IntN(9))}
		e.log = append(e.log, "keys")
	default:
		for range 1 + e.IntN(2) {
			e.edit(t, e.IntN(4))
		}
	}
}

// place says anew what runs.
func (e *editor) place(t *testing.T) {
	t.Helper()
	e.moved++
	var list []meshdir.Instance
	for i, app := range editedApps {
		for replica := range 2 {
			labels := map[string]string{"app": app}
			if e.IntN(3) == 0 {
				labels["version"] = "v2"
			}
			list = append(list, meshdir.Instance{Name: fmt.Sprintf("%s-%d", app, replica), Namespace: "default", Labels: labels, Spec: meshdir.InstanceSpec{
				ServiceAccount: app, Address: fmt.Sprintf("127.8.%d.%d", i, replica+1),
				Ports: []meshdir.InstancePort{{Name: "http", Port: 8000, App: 9000}, {Name: "tcp", Port: 8001, App: 9001}},
			}})
		}
	}
	data, err := meshdir.MarshalInstances(list)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.instances, data, 0o600); err != nil {
		t.Fatal(err)
	}
	e.log = append(e.log, "instances")
}

// edit writes a file anew, or removes it.
func (e *editor) edit(t *testing.T, remove int) {
	t.Helper()
	name := fmt.Sprintf("%d.yaml", e.IntN(24))
	path := filepath.Join(e.dir, name)
	if remove == 1 {
		_ = os.Remove(path)
		e.log = append(e.log, "rm "+name)
		return
	}
	var text strings.Builder
	// Comments move what comes after to other lines.
	text.WriteString(strings.Repeat("# a comment\n", e.IntN(3)))
	for i := range 1 + e.IntN(4) {
		text.WriteString("---\n" + e.object(strings.TrimSuffix(name, ".yaml")+"-"+fmt.Sprint(i)))
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	e.log = append(e.log, "write "+name)
}

func (e *editor) one(of ...string) string { return of[e.IntN(len(of))] }

func (e *editor) object(name string) string {
	namespace := e.one("default", "default", "default", "istio-system", "other")
	meta := fmt.Sprintf("metadata: {name: n%s, namespace: %s", name, namespace)
	selector := e.one("", "selector: {matchLabels: {app: a}}, ", "selector: {matchLabels: {app: a}}, ", "selector: {matchLabels: {app: b}}, ", "selector: {matchLabels: {app: a, version: v2}}, ")
	switch e.IntN(20) {
	case 0:
		return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n%s}\nspec: {%smtls: {mode: %s}}\n", meta, selector, e.one("STRICT", "PERMISSIVE", "DISABLE"))
	case 1, 2:
		return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n%s}\nspec: {%sjwtRules: [{issuer: 'https://issuer%d', jwks: '{\"keys\":[{\"kty\":\"EC\",\"crv\":\"P-256\",\"alg\":\"ES256\",\"kid\":\"none\",\"x\":\"aUM2DfvEbFMkGtGRJYq0xW8LeJu8gI3HGZJ4ICH0Tp4\",\"y\":\"D1bwITjXG_oAyfHAWberYrY_MjwpJfnMOLYZBVDUBy4\"}]}'}]}\n", meta, selector, e.IntN(3))
	case 3:
		return fmt.Sprintf("apiVersion: v1\nkind: Service\n%s}\nspec: {selector: {app: %s}, ports: [{name: http, port: 80, targetPort: 8000}]}\n", meta, e.one(editedApps...))
	case 4:
		return fmt.Sprintf("apiVersion: policy.writ.mesh/v1alpha1\nkind: QuotaPolicy\n%s}\nspec: {%slimits: [{requests: %d, every: 1m}]}\n", meta, selector, 1+e.IntN(9))
	case 5:
		return fmt.Sprintf("apiVersion: policy.writ.mesh/v1alpha1\nkind: RegoPolicy\n%s}\nspec: {%squery: data.p.allow, module: \"package p\\nallow if input.attributes.request.http.method == \\\"%s\\\"\"}\n", meta, selector, e.one("GET", "PUT"))
	case 6:
		return "apiVersion: v1\nkind: Namespace\nmetadata: {name: x" + name + "}\n"
	case 7:
		return fmt.Sprintf("apiVersion: v1\nkind: Service\n%s}\nspec: {ports: [{name: http, port: 80}]}\n", meta)
	case 8:
		return fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n%s, labels: {kubernetes.io/service-name: n%d-%d}}\naddressType: IPv4\nports: [{name: http, port: %s}]\nendpoints: [{addresses: [127.8.%d.1], conditions: {ready: %s}}, {addresses: [10.0.0.%d]}]\n",
			meta, e.IntN(24), e.IntN(2), e.one("8000", "8001", "80"), e.IntN(3), e.one("true", "true", "false"), 1+e.IntN(3))
	}
	annotation := e.one("", "", "", ", annotations: {istio.io/dry-run: 'true'}", ", labels: {any: thing}")
	action := e.one("ALLOW", "ALLOW", "ALLOW", "DENY", "DENY", "AUDIT")
	if strings.Contains(annotation, "dry-run") {
		action = e.one("ALLOW", "DENY")
	}
	var rules []string
	for range 1 + e.IntN(2) {
		rules = append(rules, e.one(
			fmt.Sprintf("{to: [{operation: {paths: [/p%d]}}]}", e.IntN(30)),
			fmt.Sprintf("{to: [{operation: {methods: [GET], paths: [/p%d, '/q%d/*']}}]}", e.IntN(30), e.IntN(5)),
			fmt.Sprintf("{from: [{source: {principals: [cluster.local/ns/default/sa/%s]}}]}", e.one("a", "b", "c", "nobody")),
			fmt.Sprintf("{from: [{source: {principals: [cluster.local/ns/default/sa/a%d]}}], to: [{operation: {paths: [/p%d]}}]}", e.IntN(20), e.IntN(3)),
			fmt.Sprintf("{from: [{source: {notPrincipals: [cluster.local/ns/default/sa/%s]}}]}", e.one("a", "b")),
			fmt.Sprintf("{from: [{source: {namespaces: [%s]}}]}", e.one("default", "gone")),
			fmt.Sprintf("{when: [{key: 'request.auth.claims[group]', values: [g%d]}]}", e.IntN(5)),
			fmt.Sprintf("{to: [{operation: {ports: ['%d']}}]}", 8000+e.IntN(2)),
		))
	}
	return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n%s%s}\nspec: {%saction: %s, rules: [%s]}\n", meta, annotation, selector, action, strings.Join(rules, ", "))
}
