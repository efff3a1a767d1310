package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// slowProgram is a program that takes its time until it listens, and says on which
// replica it runs.
const slowProgram = `import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["ADDRESS"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
time.sleep(0.7)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
`

func slowWorkload(name string, replicas int, more string) string {
	return fmt.Sprintf("---\nkind: LocalWorkload\nmetadata: {name: %s, labels: {app: %[1]s}}\nspec:\n  replicas: %d\n  command: [python3, slow.py]\n  ports: [{name: http, port: 8000%s}]\n", name, replicas, more)
}

// TestWaitIsForWorkloads: who adds, scales or removes a workload and waits finds it
// as the files say at the first request.
func TestWaitIsForWorkloads(t *testing.T) {
	t.Parallel()
	m := up(t, writeFiles(t, map[string]string{"slow.py": slowProgram, "workloads.yaml": workload("a", "a", newEcho(t, "a"))}))
	wait := func() {
		t.Helper()
		if out, code := m.writ("wait", m.dir); code != 0 || !strings.Contains(out, "is live") {
			t.Fatalf("exit code %d: %s", code, out)
		}
		data, err := os.ReadFile(m.cmd.Args[4])
		if err == nil {
			m.ready = ready{}
			err = json.Unmarshal(data, &m.ready)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	wait() // nothing was edited
	for i := range 10 {
		name := fmt.Sprintf("b%d", i)
		url := "http://" + name + ":8000/"
		write(t, m.dir, name+".yaml", slowWorkload(name, 1, ""))
		wait()
		if got := m.get("a-1", url); got.status != 200 || got.body != m.addressOf(name+"-1") {
			t.Errorf("%s was added: %s", name, got)
		}
		if i == 0 {
			write(t, m.dir, name+".yaml", slowWorkload(name, 2, ""))
			wait()
			want, found := m.addressOf(name+"-2"), false
			for range 50 {
				got := m.get("a-1", url)
				if got.status != 200 {
					t.Errorf("%s was scaled: %s", name, got)
				}
				found = found || got.body == want
			}
			if !found {
				t.Errorf("nobody is sent to %s-2", name)
			}
			write(t, m.dir, name+".yaml", slowWorkload(name, 1, ""))
			wait()
			for range 10 {
				if got := m.get("a-1", url); got.body != m.addressOf(name+"-1") {
					t.Errorf("%s was scaled down: %s", name, got)
				}
			}
		}
		if err := os.Remove(filepath.Join(m.dir, name+".yaml")); err != nil {
			t.Fatal(err)
		}
		wait()
		if got := m.get("a-1", url); got.status == 200 {
			t.Errorf("%s was removed: %s", name, got)
		}
		if n := len(m.ready.Workloads); n != 1 {
			t.Errorf("%s was removed: %d replicas run", name, n)
		}
	}
	// An edit that only moves a workload in its file takes no time.
	data, err := os.ReadFile(filepath.Join(m.dir, "workloads.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, m.dir, "workloads.yaml", "# first\n\n"+string(data))
	began := time.Now()
	wait()
	if took := time.Since(began); took > 2500*time.Millisecond {
		t.Errorf("nothing had to be done, and it took %s", took)
	}
}

// TestWaitSaysWhatKeepsWorkloads: a workload that cannot be started is told at once,
// one that is late by its name when the time is over.
func TestWaitSaysWhatKeepsWorkloads(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{"slow.py": slowProgram, "workloads.yaml": workload("a", "a", newEcho(t, "a"))})
	up(t, dir)
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	port := other.Addr().(*net.TCPAddr).Port
	for _, tc := range []struct{ name, file, says string }{
		{"no such program", strings.Replace(slowWorkload("b", 1, ""), "python3", "pyhton3", 1), `b.yaml:2: LocalWorkload default/b: spec.command: there is no program "pyhton3" on PATH`},
		{"a program that ends", strings.Replace(slowWorkload("b", 1, ""), "python3, slow.py", "sh, -c, 'echo it is broken; exit 3'", 1), "it is broken"},
		{"a port that is taken", slowWorkload("b", 1, fmt.Sprintf(", app: %d", port)), fmt.Sprintf("b.yaml:2: LocalWorkload default/b: spec.ports: b-1 is not started: 127.0.0.1:%d is in use by another process: stop it, or", port)},
		{"the port of a gateway", doorGateway(port, "istio: door") + doorTo("a"), fmt.Sprintf("127.0.0.1:%d is in use by another process: stop it, or change the server's port", port)},
		{"a mistake", strings.Replace(slowWorkload("b", 1, ""), "command", "comand", 1), "comand"},
	} {
		write(t, dir, "b.yaml", tc.file)
		began := time.Now()
		out, code := writ(t, "wait", dir, "--timeout", "60s")
		if took := time.Since(began); code != 1 || !strings.Contains(out, tc.says) || took > 30*time.Second {
			t.Errorf("%s: exit code %d after %s: %s", tc.name, code, took, out)
		}
	}
	write(t, dir, "b.yaml", strings.Replace(slowWorkload("b", 1, ""), "python3, slow.py", "sleep, '1000'", 1))
	if out, code := writ(t, "wait", dir, "--timeout", "1500ms"); code != 1 || !strings.Contains(out, "b-1") {
		t.Errorf("a program that does not listen: exit code %d: %s", code, out)
	}
	write(t, dir, "b.yaml", slowWorkload("b", 1, ""))
	if out, code := writ(t, "wait", dir); code != 0 {
		t.Errorf("mended: exit code %d: %s", code, out)
	}
}
