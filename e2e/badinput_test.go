package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// fails runs `writ up`, which must end by itself with exit code 1 and one line
// that has every one of the wanted pieces.
func fails(t *testing.T, dir string, env []string, args []string, want ...string) {
	t.Helper()
	cmd := exec.Command(binary(t, "writ"), append([]string{"up", dir}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	out := new(proctest.Output)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(45 * time.Second):
		_ = cmd.Process.Kill()
		<-done
		t.Fatalf("it goes on:\n%s", out)
	}
	text := strings.TrimSpace(out.String())
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in:\n%s", w, text)
		}
	}
	if lines := strings.Count(text, "\n") + 1; lines > 3 {
		t.Errorf("%d lines:\n%s", lines, text)
	}
}

func TestBadInput(t *testing.T) {
	a := newEcho(t, "a")
	good := map[string]string{"workloads.yaml": workload("a", "a", a)}
	t.Run("no such directory", func(t *testing.T) {
		fails(t, filepath.Join(t.TempDir(), "nowhere"), nil, nil, "nowhere", "mesh directory")
	})
	t.Run("malformed workloads", func(t *testing.T) {
		fails(t, writeFiles(t, map[string]string{"workloads.yaml": "kind: LocalWorkload\n\tx"}), nil, nil, "workloads.yaml:2")
	})
	t.Run("unknown field in mesh.yaml", func(t *testing.T) {
		fails(t, writeFiles(t, map[string]string{"workloads.yaml": good["workloads.yaml"], "mesh.yaml": "trustDomian: x\n"}), nil, nil, "mesh.yaml:1", "trustDomian")
	})
	t.Run("missing Envoy", func(t *testing.T) {
		fails(t, writeFiles(t, good), []string{"ENVOY=/nonexistent/envoy"}, nil, "$ENVOY", "/nonexistent/envoy")
	})
	t.Run("a port in use", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		dir := writeFiles(t, map[string]string{"workloads.yaml": good["workloads.yaml"], "gateway.yaml": `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door, namespace: istio-system}
spec:
  selector: {gateway: door}
  servers: [{port: {number: ` + port + `, name: http, protocol: HTTP}, hosts: ["*"]}]
`})
		fails(t, dir, nil, nil, "Gateway istio-system/door", "gateway.yaml:2", "port "+port, "in use")
	})
	t.Run("a corrupt state file", func(t *testing.T) {
		dir := writeFiles(t, good)
		write(t, dir, ".writ/addresses.json", "{")
		fails(t, dir, nil, nil, "addresses.json", "corrupt", "remove it")
	})
	t.Run("a corrupt root key", func(t *testing.T) {
		dir := copyDir(t, writeFiles(t, good))
		m := up(t, dir)
		m.stop()
		path := filepath.Join(dir, ".writ", "ca", "root.key")
		if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
			t.Fatal(err)
		}
		fails(t, dir, nil, nil, "root.key")
		if kept, err := os.ReadFile(path); err != nil || string(kept) != "nonsense" {
			t.Errorf("the file was touched: %q, %v", kept, err)
		}
	})
	t.Run("a second mesh from the same state", func(t *testing.T) {
		dir := writeFiles(t, good)
		up(t, dir)
		fails(t, dir, nil, nil, "is running from", "--state")
	})
	t.Run("bad documents do not hold back good ones", func(t *testing.T) {
		dir := writeFiles(t, map[string]string{
			"workloads.yaml": workload("a", "a", a) + workload("b", "b", newEcho(t, "b")),
			"bad.yaml":       "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {actoin: DENY}\n",
			"kind.yaml":      "apiVersion: v1\nkind: Servcie\nmetadata: {name: x}\n",
			"good.yaml":      "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: good}\nspec: {selector: {matchLabels: {app: b}}, action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}\n",
		})
		m := up(t, dir)
		if got := m.get("a-1", "http://b:8000/x"); got.status != 403 {
			t.Errorf("the good policy: %s", got)
		}
		out, code := m.writ("validate", dir)
		for _, want := range []string{"bad.yaml:4", "actoin", "action", "kind.yaml:2", "Servcie"} {
			if code != 1 || !strings.Contains(out, want) {
				t.Errorf("exit code %d, %q is not in:\n%s", code, want, out)
			}
		}
	})
}
