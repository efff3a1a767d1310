package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// emptyEnvoyMiB is the resident memory of an Envoy that has nothing but an
// administration interface.
func emptyEnvoyMiB(t *testing.T) float64 {
	t.Helper()
	port := proctest.Port(t)
	bootstrap := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(bootstrap, fmt.Appendf(nil, `{admin: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}`, port), 0o600); err != nil {
		t.Fatal(err)
	}
	envoy := envoytest.Run(t, envoytest.Version(t, envoytest.Newest), bootstrap)
	proctest.Eventually(t, 10*time.Second, func() error {
		if a := do(client(""), request{url: fmt.Sprintf("http://127.0.0.1:%d/ready", port)}); a.status != http.StatusOK {
			return fmt.Errorf("%s", a)
		}
		return nil
	})
	return residentMiB(t, envoy.PID())
}

// TestOldestEnvoy runs the whole demonstration on the oldest supported Envoy.
func TestOldestEnvoy(t *testing.T) {
	t.Setenv("ENVOY", envoytest.Version(t, envoytest.Oldest))
	dir := copyDir(t, filepath.Join("..", "examples", "bookinfo"))
	m := up(t, dir)
	out, code := m.writ("check", dir)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	t.Log("\n" + out)
}
