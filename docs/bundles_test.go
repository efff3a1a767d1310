package docs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/meshdir"
)

// TestBundleOfAPolicyExample reads the bundle of "Bundles" as pilot does, with a key
// that is whole.
func TestBundleOfAPolicyExample(t *testing.T) {
	const key = "-----BEGIN PUBLIC KEY-----\\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9\\nq9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==\\n-----END PUBLIC KEY-----"
	found := 0
	for _, text := range snippets(t, "authorization.md", "yaml") {
		if !strings.HasPrefix(text, "spec:\n  bundle:") {
			continue
		}
		found++
		text = strings.Replace(text, "-----BEGIN PUBLIC KEY-----...", key, 1)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "shop.yaml"), []byte("apiVersion: policy.writ.mesh/v1alpha1\nkind: RegoPolicy\nmetadata: {name: shop}\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		mesh, problems := meshdir.Validate(meshdir.Options{Dir: dir})
		for _, p := range problems {
			if p.Severity == meshdir.Error {
				t.Errorf("%s", p)
			}
		}
		if mesh == nil || len(mesh.RegoPolicies) != 1 {
			t.Errorf("what came of it: %v", mesh)
		}
	}
	if found != 1 {
		t.Errorf("%d examples", found)
	}
}
