package meshdir

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/pilot/model"
)

const (
	workloadText = `apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: web, labels: {app: web}}
spec: {ports: [{name: http, port: 80}]}
`
	routeText = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http: [{timeout: 1s, route: [{destination: {host: web}}]}]
`
)

func quota(name string, requests int) string {
	return fmt.Sprintf("apiVersion: policy.writ.mesh/v1alpha1\nkind: QuotaPolicy\nmetadata: {name: %s}\nspec: {limits: [{requests: %d, every: 1m}]}\n", name, requests)
}

// step edits the directory, then says what a Read must give.
type step struct {
	name string
	// edit maps file names to contents; "" removes the file.
	edit map[string]string
	// problems are parts of the problems that are expected, in their order.
	problems []string
	changed  bool
	// quotas are the policies in force, by name and requests.
	quotas string
	// timeout is that of the route to web, "" without one.
	timeout string
}

func quotasOf(m *model.Mesh) string {
	var out []string
	for _, q := range m.QuotaPolicies {
		out = append(out, fmt.Sprintf("%s=%d", q.Name, q.Limits[0].Requests))
	}
	return strings.Join(out, " ")
}

func runSteps(t *testing.T, steps []step) {
	t.Helper()
	dir := t.TempDir()
	r := NewReader(Options{Dir: dir})
	for _, s := range steps {
		for name, text := range s.edit {
			if text == "" {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			} else {
				write(t, dir, name, text)
			}
		}
		mesh, changed, problems := r.Read()
		if changed != s.changed {
			t.Errorf("%s: changed is %v", s.name, changed)
		}
		if got := quotasOf(mesh); got != s.quotas {
			t.Errorf("%s: quotas %q, want %q", s.name, got, s.quotas)
		}
		timeout := ""
		for _, vs := range mesh.VirtualServices {
			timeout = vs.Spec.Http[0].Timeout.AsDuration().String()
		}
		if timeout != s.timeout {
			t.Errorf("%s: timeout %q, want %q", s.name, timeout, s.timeout)
		}
		if len(problems) != len(s.problems) {
			t.Errorf("%s: problems %v, want %q", s.name, problems, s.problems)
			continue
		}
		for i, p := range problems {
			if !strings.Contains(p.String(), s.problems[i]) {
				t.Errorf("%s: problem %q, want %q", s.name, p, s.problems[i])
			}
		}
	}
}

func TestReaderKeepsLastGoodContentOfEachFile(t *testing.T) {
	runSteps(t, []step{
		{name: "first", edit: map[string]string{"a.yaml": quota("a", 1), "b.yaml": quota("b", 1)}, changed: true, quotas: "a=1 b=1"},
		{name: "nothing", quotas: "a=1 b=1"},
		{name: "a broken", edit: map[string]string{"a.yaml": quota("a", 2) + "---\nkind: ["}, problems: []string{"a.yaml:6"}, quotas: "a=1 b=1"},
		{name: "still broken", problems: []string{"a.yaml:6"}, quotas: "a=1 b=1"},
		{name: "b moves on", edit: map[string]string{"b.yaml": quota("b", 2)}, problems: []string{"a.yaml:6"}, changed: true, quotas: "a=1 b=2"},
		{name: "new broken file", edit: map[string]string{"c.yaml": quota("c", 1) + "---\nkind: X"}, problems: []string{"a.yaml:6", "c.yaml:6"}, quotas: "a=1 b=2"},
		{name: "a mended", edit: map[string]string{"a.yaml": quota("a", 3)}, problems: []string{"c.yaml:6"}, changed: true, quotas: "a=3 b=2"},
		{name: "c mended", edit: map[string]string{"c.yaml": quota("c", 1)}, changed: true, quotas: "a=3 b=2 c=1"},
		{name: "a removed", edit: map[string]string{"a.yaml": ""}, changed: true, quotas: "b=2 c=1"},
		{name: "duplicate", edit: map[string]string{"d.yaml": quota("b", 9)}, problems: []string{"already defined in b.yaml:1"}, quotas: "b=2 c=1"},
		{name: "duplicate mended", edit: map[string]string{"d.yaml": quota("d", 9)}, changed: true, quotas: "b=2 c=1 d=9"},
	})
}

func TestFirstReadLeavesOutWhatIsBad(t *testing.T) {
	runSteps(t, []step{
		{
			name: "first", edit: map[string]string{"a.yaml": quota("a", 1) + "---\n" + quota("bad", -1), "b.yaml": quota("b", 1), "r.yaml": routeText},
			problems: []string{"QuotaPolicy default/bad", "there is no service web"}, changed: true, quotas: "a=1 b=1",
		},
		{name: "again", problems: []string{"QuotaPolicy default/bad", "there is no service web"}, quotas: "a=1 b=1"},
		{
			name: "the service appears", edit: map[string]string{"w.yaml": workloadText}, problems: []string{"QuotaPolicy default/bad"},
			changed: true, quotas: "a=1 b=1", timeout: "1s",
		},
		{
			name: "a partly bad file stays", edit: map[string]string{"a.yaml": quota("a", 5) + "---\n" + quota("bad", -1)},
			problems: []string{"QuotaPolicy default/bad"}, quotas: "a=1 b=1", timeout: "1s",
		},
		{name: "mended", edit: map[string]string{"a.yaml": quota("a", 5)}, changed: true, quotas: "a=5 b=1", timeout: "1s"},
	})
}

func TestReaderHoldsBackWhatBreaksReferences(t *testing.T) {
	dangling := strings.Replace(strings.Replace(routeText, "host: web}", "host: wob}", 1), "1s", "2s", 1)
	runSteps(t, []step{
		{name: "first", edit: map[string]string{"w.yaml": workloadText, "r.yaml": routeText, "a.yaml": quota("a", 1)}, changed: true, quotas: "a=1", timeout: "1s"},
		{
			name: "dangling", edit: map[string]string{"r.yaml": dangling, "a.yaml": quota("a", 2)},
			problems: []string{`r.yaml:6: VirtualService default/web: spec.http[0].route[0].destination.host: there is no service wob.default.svc.cluster.local, did you mean "web.default.svc.cluster.local"?`},
			changed:  true, quotas: "a=2", timeout: "1s",
		},
		{name: "mended", edit: map[string]string{"r.yaml": strings.Replace(routeText, "1s", "3s", 1)}, changed: true, quotas: "a=2", timeout: "3s"},
		{
			name: "the service goes", edit: map[string]string{"w.yaml": "", "a.yaml": quota("a", 3)},
			problems: []string{"there is no service web", "w.yaml: the change of this file is held back"}, changed: true, quotas: "a=3", timeout: "3s",
		},
		{name: "route goes too", edit: map[string]string{"r.yaml": ""}, changed: true, quotas: "a=3"},
	})
}

func TestReaderFollowsNamedFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "policy.yaml", "apiVersion: policy.writ.mesh/v1alpha1\nkind: RegoPolicy\nmetadata: {name: a}\nspec: {moduleFile: a.rego, query: data.a.allow}")
	write(t, dir, "a.rego", "package a\n")
	r := NewReader(Options{Dir: dir, CompileRego: compileStub})
	if mesh, _, problems := r.Read(); len(problems) > 0 || len(mesh.RegoPolicies) != 1 {
		t.Fatal(problems)
	}
	write(t, dir, "a.rego", "package broken\n")
	if mesh, changed, problems := r.Read(); changed || len(problems) != 2 || mesh.RegoPolicies[0].Module != "package a\n" {
		t.Errorf("%v %v %+v", changed, problems, mesh.RegoPolicies)
	}
	write(t, dir, "a.rego", "package b\n")
	if mesh, changed, problems := r.Read(); !changed || len(problems) != 0 || mesh.RegoPolicies[0].Module != "package b\n" {
		t.Errorf("%v %v %+v", changed, problems, mesh.RegoPolicies)
	}
}

func TestReaderReadsInstances(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "w.yaml", workloadText)
	file := filepath.Join(dir, ".writ", "instances.yaml")
	r := NewReader(Options{Dir: dir, InstancesFile: file})
	mesh, _, problems := r.Read()
	if len(problems) > 0 || len(mesh.Proxies) != 0 || len(mesh.Services) != 1 {
		t.Fatalf("%v %+v", problems, mesh)
	}
	data, err := MarshalInstances([]Instance{{
		Name: "web-1", Namespace: "default", Labels: map[string]string{"app": "web"},
		Spec: InstanceSpec{Address: "127.0.0.5", Ports: []InstancePort{{Name: "http", Port: 80, App: 9000}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	before := r.Stamp()
	write(t, dir, ".writ/instances.yaml", string(data))
	if r.Stamp() == before {
		t.Error("a status would not wait until the instances are read")
	}
	mesh, changed, problems := r.Read()
	if !changed || len(problems) > 0 || len(mesh.Proxies) != 1 || len(mesh.Services[0].Endpoints) != 1 {
		t.Fatalf("%v %v %+v", changed, problems, mesh.Proxies)
	}
	write(t, dir, ".writ/instances.yaml", "{{{")
	mesh, changed, problems = r.Read()
	if changed || len(problems) != 1 || len(mesh.Proxies) != 1 {
		t.Errorf("%v %v %+v", changed, problems, mesh.Proxies)
	}
}

func TestReadDirBounds(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, "secret.yaml", quota("secret", 1))
	dir := t.TempDir()
	write(t, dir, "good.yaml", quota("good", 1))
	write(t, dir, "large.yaml", strings.Repeat("# filler\n", maxFileSize/9+1))
	write(t, dir, strings.Repeat("d/", maxFolders)+"in.yaml", quota("in", 1))
	write(t, dir, strings.Repeat("d/", maxFolders+1)+"deep.yaml", quota("deep", 1))
	for link, target := range map[string]string{
		"escape.yaml": filepath.Join(outside, "secret.yaml"), "inside.yaml": "good.yaml", "dangling.yaml": "nowhere.yaml", "folder.yaml": ".",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	files, problems, err := readDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names, bad []string
	for name := range files {
		names = append(names, strings.ReplaceAll(name, "d/", ""))
	}
	for _, p := range problems {
		bad = append(bad, strings.ReplaceAll(p.File, "d/", ""))
	}
	slices.Sort(names)
	slices.Sort(bad)
	if want := []string{"good.yaml", "in.yaml", "inside.yaml"}; !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	if want := []string{"d", "dangling.yaml", "escape.yaml", "folder.yaml", "large.yaml"}; !slices.Equal(bad, want) {
		t.Errorf("problems with %v, want %v: %v", bad, want, problems)
	}
}

func TestReadOfNoDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mesh")
	r := NewReader(Options{Dir: dir})
	if mesh, changed, problems := r.Read(); mesh != nil || changed || len(problems) != 1 {
		t.Errorf("%v %v %v", mesh, changed, problems)
	}
	write(t, dir, "a.yaml", quota("a", 1))
	if mesh, changed, problems := r.Read(); mesh == nil || !changed || len(problems) != 0 {
		t.Errorf("%v %v %v", mesh, changed, problems)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if mesh, changed, problems := r.Read(); mesh == nil || changed || len(problems) != 1 {
		t.Errorf("a directory that goes away: %v %v %v", mesh, changed, problems)
	}
}

func TestWatch(t *testing.T) {
	to := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(to, link); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"a directory": t.TempDir(), "a link to one": link} {
		t.Run(name, func(t *testing.T) { watchEdits(t, dir) })
	}
}

func watchEdits(t *testing.T, dir string) {
	t.Helper()
	write(t, dir, "a.yaml", quota("a", 1))
	instances := filepath.Join(t.TempDir(), "instances.yaml")
	r := NewReader(Options{Dir: dir, InstancesFile: instances})
	r.Read()
	ctx, cancel := context.WithCancel(t.Context())
	signals := r.Watch(ctx)
	expect := func(what, quotas string) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			select {
			case <-signals:
				if mesh, _, _ := r.Read(); quotasOf(mesh) == quotas {
					return
				}
			case <-deadline:
				mesh, _, problems := r.Read()
				t.Fatalf("%s: got %q, want %q (%v)", what, quotasOf(mesh), quotas, problems)
			}
		}
	}
	write(t, dir, "a.yaml", quota("a", 2))
	expect("a write", "a=2")

	write(t, dir, ".a.yaml.swp", quota("a", 3))
	if err := os.Rename(filepath.Join(dir, ".a.yaml.swp"), filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	expect("a rename over the file", "a=3")

	write(t, dir, "new/deeper/b.yaml", quota("b", 1))
	expect("a new folder", "a=3 b=1")
	write(t, dir, "new/deeper/b.yaml", quota("b", 2))
	expect("a file in a new folder", "a=3 b=2")

	if err := os.RemoveAll(filepath.Join(dir, "new")); err != nil {
		t.Fatal(err)
	}
	expect("a folder is removed", "a=3")

	write(t, filepath.Dir(instances), filepath.Base(instances), "")
	select {
	case <-signals:
	case <-time.After(10 * time.Second):
		t.Error("a change of the instances file is not seen")
	}
	cancel()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case _, open := <-signals:
			if !open {
				return
			}
		case <-deadline:
			t.Fatal("the channel is not closed")
		}
	}
}
