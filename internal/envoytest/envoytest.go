// Package envoytest finds the real Envoys that tests run.
package envoytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// Find returns the Envoy to test with: $ENVOY, else the pinned one under .tools,
// else the one on PATH. Without any the test is skipped, with CI=true it fails.
func Find(t testing.TB) string {
	t.Helper()
	if e := os.Getenv("ENVOY"); e != "" {
		return e
	}
	if e := pinned("1.40.0"); e != "" {
		return e
	}
	if e, err := exec.LookPath("envoy"); err == nil {
		return e
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("no Envoy: set $ENVOY or run `make test-tools`")
	}
	t.Skip("no Envoy: set $ENVOY or run `make test-tools`")
	return ""
}

// All returns Find's and the oldest supported Envoy, if that is there.
func All(t testing.TB) []string {
	t.Helper()
	all := []string{Find(t)}
	if e := pinned("1.36.2"); e != "" && e != all[0] {
		all = append(all, e)
	}
	return all
}

func pinned(version string) string {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return ""
	}
	path := filepath.Join(filepath.Dir(file), "../../.tools/envoy-"+version+"/bin/envoy")
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}
