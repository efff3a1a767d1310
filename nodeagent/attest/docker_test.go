package attest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/fact"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/nodeagent/attest"
)

// daemon is a Docker daemon of the test's own, with a network of its own. Its
// processes are numbered as this test's are.
type daemon struct {
	t      *testing.T
	dir    string
	socket string
	group  string // the control group of its containers
}

// startDaemon skips the test, or fails it with CI=true, if what it needs is not
// there.
func startDaemon(t *testing.T) *daemon {
	t.Helper()
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	for _, p := range []string{"dockerd", "docker", "unshare", "ip"} {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		if os.Getenv("CI") == "true" {
			t.Fatalf("missing: %s", strings.Join(missing, ", "))
		}
		t.Skipf("missing: %s", strings.Join(missing, ", "))
	}
	dir, err := os.MkdirTemp("/tmp", "writ-attest-") //nolint:usetesting // t.TempDir is too long for a socket
	if err == nil {
		err = os.WriteFile(dir+"/daemon.json", []byte("{}\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, dir: dir, socket: dir + "/docker.sock", group: filepath.Base(dir)}
	cmd := exec.Command("unshare", "--net", "--mount", "sh", "-c",
		// A containerd of the system would be used by dockerd, from outside the namespaces.
		`ip link set lo up && mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd && exec dockerd "$@"`, "dockerd",
		"--config-file", dir+"/daemon.json", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid", "-H", "unix://"+d.socket,
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/"+d.group, "--bridge", "none", "--iptables=false", "--ip-forward=false", "--storage-driver", "vfs")
	log := new(proctest.Output)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	t.Cleanup(func() {
		if ids, err := d.try("ps", "--all", "--quiet"); err == nil && strings.TrimSpace(ids) != "" {
			_, _ = d.try(append([]string{"rm", "--force"}, strings.Fields(ids)...)...)
		}
		_ = cmd.Process.Signal(syscall.SIGTERM) // it ends its containerd too
		<-done
		if t.Failed() {
			t.Logf("dockerd: %.4000s", log)
		}
		d.tidy()
	})
	proctest.Eventually(t, 60*time.Second, func() error {
		select {
		case <-done:
			t.Fatalf("dockerd ended: %s", log)
		default:
		}
		_, err := d.try("version")
		return err
	})
	return d
}

// tidy removes what outlives the daemon: its files and empty control groups.
func (d *daemon) tidy() {
	proctest.Eventually(d.t, 10*time.Second, func() error { return os.RemoveAll(d.dir) })
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + d.group)
	if err != nil {
		d.t.Error(err)
	}
	for _, base := range append(groups, "/sys/fs/cgroup/"+d.group) {
		inner, err := filepath.Glob(base + "/*/")
		if err != nil {
			d.t.Error(err)
		}
		for _, g := range append(inner, base) {
			_ = os.Remove(g)
		}
	}
}

func (d *daemon) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.socket, "DOCKER_CONFIG="+d.dir+"/config")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(out.String()), nil
}

func (d *daemon) docker(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// container starts one that sleeps, with the programs of this machine.
func (d *daemon) container(name string, flags ...string) (id string) {
	d.t.Helper()
	args := append([]string{"run", "--detach", "--network", "none", "--name", name}, flags...)
	for _, dir := range []string{"/usr", "/bin", "/lib", "/lib64"} {
		if _, err := os.Stat(dir); err == nil {
			args = append(args, "--volume", dir+":"+dir+":ro")
		}
	}
	return d.docker(append(args, "empty:1", "sleep", "600")...)
}

func (d *daemon) pid(name string) int32 {
	d.t.Helper()
	pid, err := strconv.ParseInt(d.docker("inspect", "--format", "{{.State.Pid}}", name), 10, 32)
	if err != nil {
		d.t.Fatal(err)
	}
	return int32(pid)
}

func withDocker(t *testing.T, socket string) *attest.Attestor {
	t.Helper()
	a := attest.New(t.Context(), attest.Config{
		Node: "n1", TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Dir: t.TempDir(),
		Wait: 200 * time.Millisecond, Docker: socket, Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(a.Close)
	return a
}

// TestDocker is with a real Docker daemon.
func TestDocker(t *testing.T) {
	d := startDaemon(t)
	empty := exec.Command("tar", "c", "--files-from", "/dev/null")
	tar, err := empty.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.dir+"/empty.tar", tar, 0o600); err != nil {
		t.Fatal(err)
	}
	d.docker("import", d.dir+"/empty.tar", "empty:1")
	imageID := d.docker("image", "inspect", "--format", "{{.Id}}", "empty:1")
	web := d.container("web", "--label", "app=web", "--label", "com.example.team=a:b", "--user", "1234")
	a := withDocker(t, d.socket)
	register(t, a, registration("r1", billing, "docker:label:app:web", "docker:name:web", "docker:image:empty:1",
		"docker:image_id:"+imageID, "docker:label:com.example.team:a:b", "container:id:"+web, "unix:uid:1234"))
	first := caller(t, d.pid("web"), 1234)
	wantID(t, a, first, billing)

	t.Run("a process that was started in it later", func(t *testing.T) {
		d.docker("exec", "--detach", "web", "sleep", "601")
		var pid int32
		proctest.Until(t, 10*time.Second, "it runs", func() bool {
			for line := range strings.Lines(d.docker("top", "web", "-o", "pid,args")) {
				if f := strings.Fields(line); len(f) == 3 && f[2] == "601" {
					_, err := fmt.Sscan(f[0], &pid)
					return err == nil
				}
			}
			return false
		})
		wantID(t, a, caller(t, pid, 1234), billing)
	})
	t.Run("another container that says that it is this one", func(t *testing.T) {
		register(t, a, registration("r1", billing, "docker:label:app:web"))
		wantID(t, a, first, billing)
		// In environment, host name, command line and labels of other names; in a
		// control-group namespace of its own or in the machine's.
		for i, flags := range [][]string{
			{"--cgroupns", "private"}, {"--cgroupns", "host"}, {"--privileged"},
		} {
			name := fmt.Sprint("evil", i)
			d.container(name, append(flags, "--user", "1234", "--hostname", "web", "--env", "app=web", "--env", "HOSTNAME="+web[:12],
				"--label", "APP=web", "--label", "app=web ", "--label", "x=docker:label:app:web")...)
			wantRefused(t, a, caller(t, d.pid(name), 1234))
		}
	})
	t.Run("a label with a colon in its name", func(t *testing.T) {
		d.container("colon", "--label", "a:b=c")
		register(t, a, registration("r1", billing, "docker:label:a:b:c"))
		wantRefused(t, a, caller(t, d.pid("colon"), 0))
	})
	register(t, a, registration("r1", billing, "docker:label:app:web"), registration("r2", billing, "container:id:"+web))
	t.Run("a process outside in a group with its name", func(t *testing.T) {
		p := proctest.Start(t, "sleep", "600")
		moveTo(t, p, d.group+"-spoof/docker/"+web)
		x, err := a.Explain(t.Context(), int32(p.PID()))
		if err != nil || x.Workload != nil || slices.ContainsFunc(x.Facts, func(f string) bool { return strings.HasPrefix(f, "docker:") || strings.HasPrefix(f, "container:") }) {
			t.Errorf("explained as %+v, %v", x, err)
		}
		wantRefused(t, a, caller(t, int32(p.PID()), 0))
	})
	t.Run("what changes is asked for again", func(t *testing.T) {
		register(t, a, registration("r1", billing, "docker:name:renamed"))
		wantRefused(t, a, first)
		d.docker("rename", "web", "renamed")
		proctest.Until(t, 10*time.Second, "the new name counts", func() bool {
			l, err := a.Attest(t.Context(), first)
			if err == nil {
				l.Release()
			}
			return err == nil
		})
		d.docker("restart", "--time", "0", "renamed")
		wantRefused(t, a, first)
		again := caller(t, d.pid("renamed"), 1234)
		proctest.Until(t, 10*time.Second, "the restarted container counts", func() bool {
			l, err := a.Attest(t.Context(), again)
			if err == nil {
				l.Release()
			}
			return err == nil
		})
	})
	t.Run("a lease of before a registration asks for labels", func(t *testing.T) {
		register(t, a, registration("r1", billing, "unix:uid:1234"))
		l := wantID(t, a, caller(t, d.pid("renamed"), 1234), billing)
		register(t, a, registration("r1", billing, "unix:uid:1234"), registration("r2", shipping, "unix:uid:1234", "docker:label:app:web"))
		wantDone(t, l)
	})
}

// moveTo puts a process into a control group of that path, in every hierarchy in
// which that is possible.
func moveTo(t *testing.T, p *proctest.Process, path string) {
	t.Helper()
	bases, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	moved := false
	for _, base := range append(bases, "/sys/fs/cgroup/cgroup.procs") {
		root := filepath.Dir(base)
		dir := filepath.Join(root, path)
		if os.MkdirAll(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			p.Kill()
			for g := dir; g != root; g = filepath.Dir(g) {
				_ = os.Remove(g)
			}
		})
		if os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(p.PID())), 0o600) == nil {
			moved = true
		}
	}
	if !moved {
		t.Fatal("no control group could be made")
	}
}

// TestContainerRuntimeThatMisbehaves: the caller is in no container that the
// runtime knows, whatever it answers, and other facts count on.
func TestContainerRuntimeThatMisbehaves(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"not found": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"broken":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"nonsense":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("/tmp", "writ-attest-") //nolint:usetesting // t.TempDir is too long for a socket
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			l, err := net.Listen("unix", dir+"/s")
			if err != nil {
				t.Fatal(err)
			}
			srv := &http.Server{Handler: h} //nolint:gosec // a test's own
			go func() {
				if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
					t.Error(err)
				}
			}()
			defer srv.Close()
			_, err = attest.Inspect(t.Context(), dir+"/s", strings.Repeat("a1", 32))
			if err == nil {
				t.Error("it is a container")
			}
		})
	}
}

func FuzzInspected(f *testing.F) {
	id := strings.Repeat("a1", 32)
	f.Add([]byte(`{"Id":"` + id + `","Name":"/web","Image":"sha256:` + id + `","State":{"Running":true,"Pid":7},"Config":{"Image":"a:1","Labels":{"k":"v","a:b":"c","n":"l\nf"}}}`))
	f.Add([]byte(`{"Id":"` + id + `","State":{"Running":false,"Pid":7}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		facts, err := attest.ParseInspected(data, id)
		if err != nil {
			return
		}
		for _, s := range facts {
			if _, _, err := fact.Parse(s); err != nil {
				t.Error(err)
			}
		}
	})
}
