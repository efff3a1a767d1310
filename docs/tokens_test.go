package docs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestTokensExample reads the example of "Tokens" as pilot does.
func TestTokensExample(t *testing.T) {
	found := 0
	for _, text := range snippets(t, "authorization.md", "yaml") {
		if !strings.Contains(text, "kind: RequestAuthentication") {
			continue
		}
		found++
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "tokens.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		mesh, problems := meshdir.Validate(meshdir.Options{Dir: dir})
		for _, p := range problems {
			if p.Severity == meshdir.Error {
				t.Errorf("%s", p)
			}
		}
		if mesh == nil || len(mesh.RequestAuthentications) != 1 || model.TokenRequirement(mesh.RequestAuthentications[0]) != model.RequireAny {
			t.Errorf("what came of it: %v", mesh)
		}
	}
	if found == 0 {
		t.Error("there is no example")
	}
}
