package meshdir

import (
	"os"
	"path/filepath"
	"testing"
)

const denyAll = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny}
spec: {action: DENY, rules: [{}]}
`

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestLastGoodSurvivesTheProcess: a broken edit and a restart together must not
// lose a policy.
func TestLastGoodSurvivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	options := Options{Dir: dir, LastGood: filepath.Join(t.TempDir(), "last-good.json")}
	file := filepath.Join(dir, "deny.yaml")
	put(t, file, denyAll)
	if mesh, changed, problems := NewReader(options).Read(); len(mesh.AuthorizationPolicies) != 1 || !changed || len(Errors(problems)) > 0 {
		t.Fatalf("first: %v, %v", changed, problems)
	}
	put(t, file, "kind: AuthorizationPolicy\nspec: {actoin: DENY}\n")
	r := NewReader(options)
	mesh, changed, problems := r.Read()
	if len(mesh.AuthorizationPolicies) != 1 || !changed || len(Errors(problems)) == 0 {
		t.Fatalf("after a restart with a broken file: %d policies, changed %v, %v", len(mesh.AuthorizationPolicies), changed, problems)
	}
	if _, changed, _ := r.Read(); changed {
		t.Error("a second read of the same is a change")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if mesh, _, _ := NewReader(options).Read(); len(mesh.AuthorizationPolicies) != 0 {
		t.Error("a policy whose file was deleted is still there after a restart")
	}
	if info, err := os.Stat(options.LastGood); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestCorruptLastGoodIsToldAndNotUsed(t *testing.T) {
	dir := t.TempDir()
	options := Options{Dir: dir, LastGood: filepath.Join(t.TempDir(), "last-good.json")}
	put(t, filepath.Join(dir, "deny.yaml"), denyAll)
	for _, content := range []string{"", "{", `{"files":{"deny.yaml":""}}`} {
		put(t, options.LastGood, content)
		r := NewReader(options)
		mesh, _, problems := r.Read()
		if len(mesh.AuthorizationPolicies) != 1 || len(problems) == 0 || problems[0].Severity != Warning || problems[0].File != options.LastGood {
			t.Errorf("%q: %v", content, problems)
		}
		if _, _, problems := r.Read(); len(problems) > 0 {
			t.Errorf("%q: told twice: %v", content, problems)
		}
	}
}
