package compose_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// repository is the root of the repository, seen from here.
const repository = "../.."

// docker is a Docker daemon of the test's own, in namespaces of its own: its
// bridges, packet filter rules, mounts and containers end with its process.
type docker struct {
	t *testing.T
	// dir is short: the path of a unix socket has at most 107 bytes.
	dir string
	// compose is the command that is Docker Compose.
	compose []string
	env     []string
	// pid is the daemon's process.
	pid string
}

// need skips the test, or fails it with CI=true, if what it needs is not there.
func need(t *testing.T) (compose []string) {
	t.Helper()
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	for _, p := range []string{"dockerd", "docker", "unshare", "nsenter", "ip", "iptables-restore", "redis-server"} {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p)
		}
	}
	compose = findCompose()
	if compose == nil {
		missing = append(missing, "Docker Compose 2 (hack/fetch-compose.sh brings it)")
	}
	if len(missing) == 0 {
		return compose
	}
	text := "missing: " + strings.Join(missing, ", ")
	if os.Getenv("CI") == "true" {
		t.Fatal(text)
	}
	t.Skip(text)
	return nil
}

func findCompose() []string {
	if own, err := filepath.Abs(filepath.Join(repository, ".tools/bin/docker-compose")); err == nil {
		if _, err := os.Stat(own); err == nil {
			return []string{own}
		}
	}
	out, err := exec.Command("docker", "compose", "version", "--short").Output()
	if v := strings.TrimPrefix(strings.TrimSpace(string(out)), "v"); err == nil && v >= "2.2" {
		return []string{"docker", "compose"}
	}
	return nil
}

func startDocker(t *testing.T) *docker {
	t.Helper()
	d := &docker{t: t, compose: need(t)}
	dir, err := os.MkdirTemp("/tmp", "writ-compose-") //nolint:usetesting // t.TempDir is too long for a socket
	if err == nil {
		err = os.WriteFile(dir+"/daemon.json", []byte("{}\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.dir = dir
	socket := "unix://" + dir + "/docker.sock"
	d.env = append(os.Environ(), "DOCKER_HOST="+socket, "DOCKER_CONFIG="+dir+"/config",
		"COMPOSE_FILE=compose.yaml", "COMPOSE_PROJECT_NAME=bookinfo", "COMPOSE_PROGRESS=plain", "TAG=dev", "WRIT_TAG=dev", "WRIT_GATEWAY_PORT=8080")
	group := filepath.Base(dir)
	cmd := exec.Command("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
		// A containerd of the system would be used by dockerd, from outside the namespaces.
		`ip link set lo up && mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd && exec dockerd "$@"`, "dockerd",
		"--config-file", dir+"/daemon.json", // not that of the machine's own daemon
		"--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid", "-H", socket,
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/"+group,
		"--bip", "10.88.0.1/24", "--default-address-pool", "base=10.88.128.0/17,size=24")
	log := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		// The daemon is the first process of its PID namespace: all others end with
		// it. unshare ends when it has.
		if pid, err := strconv.Atoi(d.pid); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		} else {
			_ = cmd.Process.Kill()
		}
		<-done
		if t.Failed() {
			t.Logf("dockerd: %s", tail(log.String(), 20))
		}
		d.tidy(group)
	})
	d.poll(30*time.Second, "the Docker daemon answers", func() error {
		select {
		case err := <-done:
			done <- err
			t.Fatalf("dockerd ended: %v\n%s", err, tail(log.String(), 20))
		default:
		}
		_, err := d.try("docker", "version")
		return err
	})
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	d.pid = strings.TrimSpace(string(children))
	return d
}

// tidy removes what outlives the daemon: its files and empty control groups.
func (d *docker) tidy(group string) {
	if err := removeAll(d.dir); err != nil {
		d.t.Errorf("what the daemon left: %v", err)
	}
	bases, _ := filepath.Glob("/sys/fs/cgroup/*/" + group)
	for _, base := range append(bases, "/sys/fs/cgroup/"+group) {
		var dirs []string
		_ = filepath.WalkDir(base, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = os.Remove(dirs[i])
		}
	}
}

// removeAll tries again for a moment: the last processes may still be ending.
func removeAll(dir string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
		if err := os.RemoveAll(dir); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// try runs a command against the daemon and returns what it prints.
func (d *docker) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = d.env
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, tail(out.String()+stderr.String(), 40))
	}
	return out.String(), nil
}

// run is try for commands that have to work.
func (d *docker) run(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// do runs Docker Compose.
func (d *docker) do(args ...string) string {
	d.t.Helper()
	return d.run(append(append([]string{}, d.compose...), args...)...)
}

// logs gives what a container has written, both streams.
func (d *docker) logs(container string) string {
	d.t.Helper()
	cmd := exec.Command("docker", "logs", container)
	cmd.Env = d.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("logs of %s: %v\n%s", container, err, out)
	}
	return string(out)
}

// inside gives the command that runs args in the daemon's network namespace,
// where published ports are.
func (d *docker) inside(args ...string) []string {
	return append([]string{"nsenter", "--target", d.pid, "--net"}, args...)
}

// poll waits until f works.
func (d *docker) poll(bound time.Duration, what string, f func() error) {
	d.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	err := errors.New("never tried")
	for deadline := time.Now().Add(bound); time.Now().Before(deadline); <-tick.C {
		if err = f(); err == nil {
			return
		}
	}
	d.t.Fatalf("%s: not within %s: %v", what, bound, err)
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
