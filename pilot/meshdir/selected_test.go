package meshdir

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

func someLabels(random *rand.Rand, most int) map[string]string {
	labels := map[string]string{}
	for range random.IntN(most + 1) {
		labels[fmt.Sprint("k", random.IntN(3))] = []string{"", "a", "b"}[random.IntN(3)]
	}
	return labels
}

// TestIndexesFindWhatLookingAtEachOneFinds: for any workloads, selectors and
// policies, and in the same order.
func TestIndexesFindWhatLookingAtEachOneFinds(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	namespaces := []string{"root", "one", "two"}
	type policy struct {
		namespace string
		selector  map[string]string
		number    int
	}
	for range 300 {
		workloads, policies := labelIndex[workload]{}, policyIndex[policy]{}
		var all []workload
		for i := range random.IntN(10) {
			w := workload{&model.Proxy{Name: fmt.Sprint(i), Namespace: namespaces[random.IntN(3)], Labels: someLabels(random, 3)}, ""}
			all = append(all, w)
			workloads.add(w.Namespace, w.Labels, w)
		}
		var written []policy
		for i := range random.IntN(10) {
			p := policy{namespaces[random.IntN(3)], someLabels(random, 2), i}
			written = append(written, p)
			policies.add(p.namespace, p.selector, p)
		}
		a := &assembler{mesh: &model.Mesh{RootNamespace: "root"}, inventory: inventory{workloads: workloads}}
		for _, p := range written {
			want := slices.DeleteFunc(slices.Clone(all), func(w workload) bool { return !a.selects(p.namespace, p.selector, w) })
			if got := a.selected(p.namespace, p.selector); !slices.Equal(got, want) {
				t.Fatalf("%v selects %v, want %v", p, got, want)
			}
		}
		for _, w := range all {
			seen := map[int]int{}
			policies.some("root", w, func(p policy) bool { seen[p.number]++; return false })
			for _, p := range written {
				want := 0
				if a.selects(p.namespace, p.selector, w) {
					want = 1
				}
				if seen[p.number] != want {
					t.Fatalf("%v of %s/%v is asked about %d times, want %d", p, w.Namespace, w.Labels, seen[p.number], want)
				}
				if want == 1 && !policies.some("root", w, func(q policy) bool { return q.number == p.number }) {
					t.Fatalf("%v is not found", p)
				}
			}
		}
	}
}

// TestReadingAgainSaysWhatReadingAnewSays: after any series of edits without
// errors a Reader has the problems of who reads the directory for the first time,
// and has parsed only what was edited.
func TestReadingAgainSaysWhatReadingAnewSays(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	dir := t.TempDir()
	content := []func(i int) string{
		func(i int) string {
			return fmt.Sprintf("apiVersion: local.writ.mesh/v1alpha1\nkind: LocalWorkload\nmetadata: {name: w%[1]d, labels: {app: a%[1]d}}\nspec: {command: [x], serviceAccount: a%[1]d, ports: [{name: %[2]s, port: 80}]}\n", i, []string{"http", "tcp"}[random.IntN(2)])
		},
		func(i int) string {
			return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: a%d}\nspec: {selector: {app: a%d}, ports: [{name: http, port: %d}]}\n", i, random.IntN(4), 80+random.IntN(2))
		},
		func(i int) string {
			return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p%d}\nspec: {selector: {matchLabels: {app: a%d}}, action: %s, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/a%d]}}]}]}\n", i, random.IntN(4), []string{"ALLOW", "DENY"}[random.IntN(2)], random.IntN(6))
		},
		func(i int) string {
			return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: m%d}\nspec: {selector: {matchLabels: {app: a%d}}, mtls: {mode: %s}}\n", i, random.IntN(4), []string{"STRICT", "DISABLE"}[random.IntN(2)])
		},
	}
	put := func(name, text string) { write(t, dir, name, text) }
	for i := range 3 {
		for kind, text := range content {
			put(fmt.Sprintf("%d-%d.yaml", kind, i), text(i))
		}
	}
	r := NewReader(Options{Dir: dir})
	r.Read()
	warned := false
	for range 60 {
		i, kind := random.IntN(3), random.IntN(len(content))
		edited := fmt.Sprintf("%d-%d.yaml", kind, i)
		put(edited, content[kind](i))
		before := r.parsed
		_, _, got := r.Read()
		_, _, want := NewReader(Options{Dir: dir}).Read()
		if !slices.Equal(got, want) {
			t.Fatalf("after an edit of %s:\n%v\nwant\n%v", edited, got, want)
		}
		warned = warned || len(got) > 0
		for name, f := range r.parsed {
			if name != edited && f != before[name] {
				t.Fatalf("%s is parsed again because of %s", name, edited)
			}
		}
	}
	if !warned {
		t.Error("no edit was warned of: the test says nothing")
	}
}

// TestAdviceComesWhenTheErrorsAreGone: what has errors is told of those alone; the
// rest is advised on as if they were not there.
func TestAdviceComesWhenTheErrorsAreGone(t *testing.T) {
	files := readAdvice(t, "testdata/advice/traffic.yaml")
	_, want := Parse(files, nil, Options{})
	files["broken.yaml"] = []byte("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: lost}\nspec: {hosts: [lost.example], http: [{route: [{destination: {host: nowhere}}]}]}\n")
	_, got := Parse(files, nil, Options{})
	failed := 0
	got = slices.DeleteFunc(got, func(p Problem) bool {
		if p.Severity == Error {
			failed++
		}
		return p.File == "broken.yaml"
	})
	if failed == 0 || !slices.Equal(got, want) {
		t.Errorf("%d errors, and\n%v\nwant\n%v", failed, got, want)
	}
}
