package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// newestEnvoy and oldestEnvoy are the ends of the supported range, as `make
// test-tools` fetches them.
const (
	newestEnvoy = "1.40.0"
	oldestEnvoy = "1.36.2"
)

func fetchedEnvoy(t *testing.T, version string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", ".tools", "envoy-"+version, "bin", "envoy"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("Envoy %s is missing: run `make test-tools`", version)
		}
		t.Skipf("Envoy %s is missing: run `make test-tools`", version)
	}
	return path
}

// emptyEnvoyMiB is the resident memory of an Envoy that has nothing but an
// administration interface.
func emptyEnvoyMiB(t *testing.T) float64 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	bootstrap := fmt.Sprintf(`{admin: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}`, port)
	cmd := exec.Command(fetchedEnvoy(t, newestEnvoy), "--config-yaml", bootstrap, "--disable-hot-restart", "--concurrency", "1", "--log-level", "error")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	eventually(t, 10*time.Second, func() error {
		if a := do(client(""), request{url: fmt.Sprintf("http://127.0.0.1:%d/ready", port)}); a.status != http.StatusOK {
			return fmt.Errorf("%s", a)
		}
		return nil
	})
	return residentMiB(t, cmd.Process.Pid)
}

// TestOldestEnvoy runs the whole demonstration on the oldest supported Envoy.
func TestOldestEnvoy(t *testing.T) {
	t.Setenv("ENVOY", fetchedEnvoy(t, oldestEnvoy))
	dir := copyDir(t, filepath.Join("..", "examples", "bookinfo"))
	m := up(t, dir)
	out, code := m.writ("check", dir)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	t.Log("\n" + out)
}
