package stack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/authz/bundlestatus"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

func TestBundleProblems(t *testing.T) {
	dir := t.TempDir()
	if list, err := BundleProblems(dir, ""); err != nil || len(list) != 0 {
		t.Errorf("without a file: %v %v", list, err)
	}
	state := filepath.Join(dir, stateFolder, "authz")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	told := []bundlestatus.Problem{
		{Policy: "default/a", Source: "p.yaml:7", Reason: "not found"},
		{Policy: "default/b", Source: "p.yaml:9", Reason: "no archive", Since: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)},
	}
	if err := bundlestatus.Write(state, told); err != nil {
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
