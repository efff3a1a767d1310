package meshdir

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/regoform"
)

// readAdvice reads a mesh of testdata/advice: NAME.yaml, and NAME.mesh for
// mesh.yaml.
func readAdvice(t *testing.T, file string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	var err error
	if files["a.yaml"], err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	if mesh, err := os.ReadFile(strings.TrimSuffix(file, ".yaml") + ".mesh"); err == nil {
		files["mesh.yaml"] = mesh
	}
	return files
}

// TestAdvice reads the meshes of testdata/advice, which have no errors. In each
// the objects whose names begin with "bad" are warned of, and no others: those
// that begin with "good" are the nearest ones that are right. The golden file has
// the words.
func TestAdvice(t *testing.T) {
	files, err := filepath.Glob("testdata/advice/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			mesh := readAdvice(t, file)
			_, problems := Parse(mesh, nil, Options{SplitRego: func(_, module, _ string) *regoform.Policy {
				p := regoform.Unknown(regoform.Reason{})
				for _, read := range []string{"input.attributes.request.http.method", "input.parsed_path"} {
					if strings.Contains(module, read) {
						p.Requests = append(p.Requests, read)
					}
				}
				p.Ports = strings.Contains(module, "portValue")
				return p
			}})
			var got strings.Builder
			warned := map[string]bool{}
			for _, p := range problems {
				fmt.Fprintln(&got, p)
				_, name, _ := strings.Cut(p.Object, "/")
				warned[name] = true
				if p.Severity == Error || !strings.HasPrefix(name, "bad") {
					t.Errorf("unexpected: %s", p)
				}
			}
			for line := range strings.Lines(string(mesh["a.yaml"])) {
				if _, rest, ok := strings.Cut(line, "metadata: {name: bad"); ok {
					if name := "bad" + rest[:strings.IndexAny(rest, ",}")]; !warned[name] {
						t.Errorf("nothing is said about %s", name)
					}
				}
			}
			sameAsGolden(t, strings.TrimSuffix(file, ".yaml")+".txt", got.String())
		})
	}
}

// TestAdviceNeedsToKnow: what is missing is told only where it is known what is
// there. Without workloads, or beside a file that cannot be read, only what is
// wrong by itself is told.
func TestAdviceNeedsToKnow(t *testing.T) {
	for _, name := range []string{"callers", "plaintext", "tokens", "traffic"} {
		files := readAdvice(t, "testdata/advice/"+name+".yaml")
		broken := maps.Clone(files)
		broken["broken.yaml"] = []byte("kind: LocalWorkload\nmetadata: {name: more}\nspec: {prots: []}\n")
		_, problems := Parse(broken, nil, Options{})
		if problems = slices.DeleteFunc(problems, func(p Problem) bool { return p.File == "broken.yaml" }); len(problems) > 0 {
			t.Errorf("%s, with a broken file: %v", name, problems)
		}
		var without []string
		for _, document := range strings.Split(string(files["a.yaml"]), "---\n") {
			if strings.Contains(document, "AuthorizationPolicy") || strings.Contains(document, "RequestAuthentication") {
				without = append(without, document)
			}
		}
		files["a.yaml"] = []byte(strings.Join(without, "---\n"))
		if _, problems := Parse(files, nil, Options{}); len(problems) > 0 {
			t.Errorf("%s, without workloads: %v", name, problems)
		}
	}
}

// TestAdviceOnReplicas: with redirection any port of a replica is reached, and
// what the supervisor has started says nothing new.
func TestAdviceOnReplicas(t *testing.T) {
	files := readAdvice(t, "testdata/advice/traffic.yaml")
	_, before := Parse(files, nil, Options{})
	replica := Instance{
		Name: "stock-v1-1", Namespace: "default", Labels: map[string]string{"app": "stock", "version": "v1"},
		Spec: InstanceSpec{ServiceAccount: "stock", Address: "127.0.16.1", Ports: []InstancePort{{Name: "http", Port: 8000, App: 18000}}},
	}
	for interception, want := range map[string]int{"explicit": len(before), "redirect": len(before) - 2} {
		replica.Spec.Interception = interception
		data, err := MarshalInstances([]Instance{replica})
		if err != nil {
			t.Fatal(err)
		}
		if _, problems := Parse(files, data, Options{}); len(problems) != want {
			t.Errorf("%s: %d warnings, want %d: %v", interception, len(problems), want, problems)
		}
	}
}
