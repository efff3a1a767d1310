package stack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/authz"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

func TestBundleProblems(t *testing.T) {
	dir := t.TempDir()
	if list, err := BundleProblems(dir, ""); err != nil || list != nil {
		t.Errorf("without a file: %v %v", list, err)
	}
	state := filepath.Join(dir, stateFolder, "authz")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	const text = `[{"policy": "default/a", "source": "p.yaml:7", "reason": "not found"}, {"policy": "default/b", "source": "p.yaml:9", "reason": "no archive", "since": "2026-11-21T10:00:00Z"}]`
	if err := os.WriteFile(filepath.Join(state, authz.ProblemsFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := BundleProblems(dir, "")
	if err != nil || len(list) != 2 {
		t.Fatalf("%v %v", list, err)
	}
	a, b := list[0], list[1]
	if a.File != "p.yaml" || a.Line != 7 || a.Severity != meshdir.Error || !strings.Contains(a.Message, "everything is refused") {
		t.Errorf("%+v", a)
	}
	if b.Line != 9 || b.Severity != meshdir.Warning || !strings.Contains(b.Message, "2026-11-21") || b.Object != "RegoPolicy default/b" {
		t.Errorf("%+v", b)
	}
}
