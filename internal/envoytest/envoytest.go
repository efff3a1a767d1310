// Package envoytest finds and runs the real Envoys of the tests.
package envoytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/writ-mesh/writ/internal/proctest"
)

// The ends of the supported range, as `make test-tools` fetches them.
const (
	Newest = "1.40.0"
	Oldest = "1.36.2"
)

// Find returns the Envoy to test with: $ENVOY, else the newest under .tools, else
// the one on PATH. Without any the test is skipped, with CI=true it fails.
func Find(t testing.TB) string {
	t.Helper()
	if e := os.Getenv("ENVOY"); e != "" {
		return e
	}
	if e := fetched(Newest); e != "" {
		return e
	}
	if e, err := exec.LookPath("envoy"); err == nil {
		return e
	}
	return missing(t, "no Envoy: set $ENVOY or run `make test-tools`")
}

// Version returns the fetched Envoy of a version. Without it the test is
// skipped, with CI=true it fails.
func Version(t testing.TB, version string) string {
	t.Helper()
	if e := fetched(version); e != "" {
		return e
	}
	return missing(t, "Envoy "+version+" is missing: run `make test-tools`")
}

// All returns Find's and the oldest supported Envoy. Where the oldest is missing, and with
// -short, only Find's is returned; with CI=true the test fails if it is missing.
func All(t testing.TB) []string {
	t.Helper()
	all := []string{Find(t)}
	if testing.Short() {
		return all
	}
	oldest := fetched(Oldest)
	switch {
	case oldest == "" && os.Getenv("CI") == "true":
		missing(t, "Envoy "+Oldest+" is missing: run `make test-tools`")
	case oldest != "" && oldest != all[0]:
		all = append(all, oldest)
	}
	return all
}

// Run runs an Envoy with one worker on a bootstrap file until t ends.
func Run(t testing.TB, envoy, bootstrap string, args ...string) *proctest.Process {
	t.Helper()
	return proctest.Start(t, envoy, append([]string{"-c", bootstrap, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"}, args...)...)
}

func missing(t testing.TB, what string) string {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
	return ""
}

// fetched looks beside the go.mod file of the checkout, which is above the folder
// that a test runs in.
func fetched(version string) string {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if filepath.Dir(dir) == dir {
			return ""
		}
		dir = filepath.Dir(dir)
	}
	path := filepath.Join(dir, ".tools", "envoy-"+version, "bin", "envoy")
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}
