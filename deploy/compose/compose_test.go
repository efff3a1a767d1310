// Package compose_test runs the mesh of deploy/compose with a real Docker daemon,
// and checks that its files agree with each other.
package compose_test

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// upBound is how long everything may take to be healthy once images are built.
	upBound = time.Minute
	// imageLimit is the size of an image in bytes; Envoy's own is larger.
	imageLimit = 120_000_000
)

var (
	services = []string{"ca", "pilot", "authz", "ratelimit", "nodeagent"}
	images   = append([]string{"writ", "pod", "bookinfo", "envoy", "iptables", "redis"}, services...)
)

// TestMesh brings the mesh up once; the subtests follow one another.
func TestMesh(t *testing.T) {
	d := startDocker(t)
	m := &mesh{docker: d, dir: filepath.Join(d.dir, "mesh")}
	if err := os.CopyFS(m.dir, withoutState{os.DirFS(filepath.Join(repository, "examples/bookinfo"))}); err != nil {
		t.Fatal(err)
	}
	d.env = append(d.env, "WRIT_MESH="+m.dir)
	d.run("make", "-C", repository, "build")
	var sizes string
	took := seconds(func() { sizes = d.run(filepath.Join(repository, "deploy/images/build.sh")) })
	t.Logf("images, built in %.1f s:\n%s", took, sizes)
	t.Run("images", m.images)

	m.up("first start")
	t.Cleanup(func() {
		if t.Failed() {
			out, err := d.try(append(append([]string{}, d.compose...), "logs", "--tail", "8", "--no-color")...)
			t.Log(cut(out, 300), err)
		}
		_, _ = d.try(append(append([]string{}, d.compose...), "down", "--volumes", "--timeout", "1")...)
	})
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"checks", m.checks},
		{"a request goes where its Host says, not to the address", m.byHost},
		{"an edited policy is live", m.edit},
		{"the store is for ratelimit alone", m.store},
		{"who has the socket but not the user gets nothing", m.stranger},
		{"programs that die come back, redirected", m.kill},
		{"a pod without its network is closed", m.podDies},
		{"a restart keeps the root and needs no new tokens", m.restart},
		{"a mesh that was down comes up with the same root", m.downAndUp},
	} {
		t.Run(step.name, func(t *testing.T) {
			d.t = t
			defer func(began time.Time) { t.Logf("took %.1f s", time.Since(began).Seconds()) }(time.Now())
			step.run(t)
		})
	}
	d.t = t
}

type mesh struct {
	*docker
	// dir is a copy of the mesh directory, to be edited.
	dir string
}

func seconds(f func()) float64 {
	began := time.Now()
	f()
	return time.Since(began).Seconds()
}

// up starts what is not running and waits until all is healthy.
func (m *mesh) up(what string) {
	m.t.Helper()
	took := seconds(func() { m.do("up", "--wait") })
	m.t.Logf("%s: healthy in %.1f s", what, took)
	if took > upBound.Seconds() {
		m.t.Errorf("%s: healthy after %.1f s, want %s", what, took, upBound)
	}
}

// cut shortens long lines.
func cut(text string, limit int) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if len(l) > limit {
			lines[i] = l[:limit] + "..."
		}
	}
	return strings.Join(lines, "\n")
}

// images: small, of a user that is not root, and the programs static.
func (m *mesh) images(t *testing.T) {
	for _, name := range images {
		var found []struct {
			Size   int64
			Config struct{ User string }
		}
		if err := json.Unmarshal([]byte(m.run("docker", "image", "inspect", "writ/"+name+":dev")), &found); err != nil || len(found) != 1 {
			t.Fatalf("image %s: %v", name, err)
		}
		if found[0].Size > imageLimit && name != "envoy" {
			t.Errorf("image %s has %d bytes, want at most %d", name, found[0].Size, imageLimit)
		}
		user, _, _ := strings.Cut(found[0].Config.User, ":")
		if uid, err := strconv.Atoi(user); (err != nil || uid == 0) && name != "iptables" {
			t.Errorf("image %s runs as user %q, want a number that is not 0", name, found[0].Config.User)
		}
	}
	for _, binary := range []string{"writ", "writ-pod", "bookinfo", "writ-ca", "writ-pilot", "writ-authz", "writ-ratelimit", "writ-nodeagent"} {
		f, err := elf.Open(filepath.Join(repository, "bin", binary))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s is not static", binary)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// checks runs the same checks.yaml as `writ up --check` does.
func (m *mesh) checks(t *testing.T) {
	out, err := m.check()
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out)
}

func (m *mesh) check() (string, error) {
	return m.try(m.inside(filepath.Join(repository, "bin/writ"), "check", m.dir, "--target", "target.json")...)
}

// answer is what writ-pod writes of an HTTP answer, or why none came.
type answer struct {
	Status int
	Header http.Header
	Body   string
	Error  string
}

// get sends a request from inside a container.
func (m *mesh) get(t *testing.T, container, url string) answer {
	t.Helper()
	return m.getFrom(t, container, url, nil)
}

func (m *mesh) getFrom(t *testing.T, container, url string, headers map[string]string) answer {
	t.Helper()
	in, err := json.Marshal(map[string]any{"method": http.MethodGet, "url": url, "headers": headers})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker", "exec", "-i", container, "/usr/bin/writ-pod", "request")
	cmd.Env, cmd.Stdin = m.env, bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("request from %s: %v", container, err)
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatalf("request from %s: %v: %s", container, err, out)
	}
	return a
}

func (m *mesh) edit(t *testing.T) {
	details := func() answer { return m.get(t, "bookinfo-productpage-app-1", "http://details:9080/details/0") }
	file := filepath.Join(m.dir, "policies", "closed.yaml")
	const policy = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed}
spec: {action: DENY, selector: {matchLabels: {app: details}}, rules: [{}]}
`
	if err := os.WriteFile(file, []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	m.poll(10*time.Second, "a new policy refuses", func() error {
		if a := details(); !strings.HasPrefix(a.Header.Get("x-writ-denied-by"), "AuthorizationPolicy default/closed") {
			return fmt.Errorf("got %+v", a)
		}
		return nil
	})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	m.poll(10*time.Second, "without it details answers again", func() error {
		if a := details(); a.Status != 200 {
			return fmt.Errorf("got %+v", a)
		}
		return nil
	})
}

// byHost has a program dial the address of one service for another one.
func (m *mesh) byHost(t *testing.T) {
	address := strings.TrimSpace(m.run("docker", "inspect", "-f", `{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}`, "bookinfo-ratings-1"))
	if strings.Contains(address, " ") || address == "" {
		t.Fatalf("ratings has the addresses %q, want one", address)
	}
	at := func(host string) answer {
		return m.getFrom(t, "bookinfo-productpage-app-1", "http://"+address+":9080/details/0", map[string]string{"host": host})
	}
	if a := at("details:9080"); a.Status != http.StatusOK || !strings.Contains(a.Body, `"author"`) {
		t.Errorf("details at the address of ratings: %+v", a)
	}
	// Whom ratings may be called by is decided there, and productpage may not.
	if a := at("ratings:9080"); a.Status != http.StatusForbidden {
		t.Errorf("ratings at its address: %+v", a)
	}
}

// store: whoever reaches Redis can change what was counted.
func (m *mesh) store(t *testing.T) {
	networks := `{{range $n, $v := .NetworkSettings.Networks}}{{$n}} {{$v.IPAddress}} {{end}}`
	got := strings.Fields(m.run("docker", "inspect", "-f", networks, "bookinfo-redis-1"))
	if len(got) != 2 || got[0] != "bookinfo_store" {
		t.Fatalf("redis is on %q, want one network bookinfo_store", got)
	}
	for _, from := range []string{"bookinfo-outsider-1", "bookinfo-productpage-app-1"} {
		// A Redis that is reached says at once that this is no command of its own.
		_, err := m.try("docker", "exec", from, "/usr/bin/writ-pod", "ready", "http://"+got[1]+":6379/")
		if err == nil || !strings.Contains(err.Error(), "Client.Timeout exceeded") {
			t.Errorf("%s reaches redis: %v", from, err)
		}
	}
}

// stranger: the bootstrap of ratings says who it is; the user says otherwise.
func (m *mesh) stranger(t *testing.T) {
	m.run("docker", "run", "--detach", "--name", "stranger", "--network", "none", "--user", "29999:1337",
		"--volume", "bookinfo_agent-socket:/run/writ/agent:ro", "--volume", "bookinfo_bootstrap:/etc/envoy:ro",
		"writ/envoy:dev", "-c", "/etc/envoy/default-ratings.json", "--disable-hot-restart", "--log-level", "warning")
	defer m.run("docker", "rm", "--force", "stranger")
	m.poll(20*time.Second, "the node agent refuses", func() error {
		if log := m.logs("bookinfo-nodeagent-1"); !strings.Contains(log, "uid=29999 is no workload of node compose") {
			return errors.New("no refusal in its log")
		}
		return nil
	})
	if out, err := m.try("docker", "exec", "stranger", "/usr/bin/writ-pod", "ready", "http://127.0.0.1:15021/healthz/ready"); err == nil {
		t.Errorf("an Envoy that nobody placed is ready: %s", out)
	}
}

// kill ends an Envoy, a program and every service at once, as the kernel would.
func (m *mesh) kill(t *testing.T) {
	victims := []string{"ratings-sidecar", "ratings-app"}
	for _, s := range append(victims, services...) {
		m.signal(t, "bookinfo-"+s+"-1")
	}
	m.poll(upBound, "checks pass again", func() error { _, err := m.check(); return err })
}

// signal kills a container's process from outside Docker: Docker does not start
// again what it was told to kill.
func (m *mesh) signal(t *testing.T, container string) {
	t.Helper()
	pid := strings.TrimSpace(m.run("docker", "inspect", "-f", "{{.State.Pid}}", container))
	// The daemon's PID is that of its own namespace.
	m.run("nsenter", "--target", m.pid, "--pid", "--mount", "sh", "-c", "kill -9 "+pid)
}

// podDies: with the holder of its network namespace gone, a program must not be
// reachable past its Envoy, not even after it was started again.
func (m *mesh) podDies(t *testing.T) {
	m.signal(t, "bookinfo-ratings-1")
	m.poll(20*time.Second, "the pod has ended", func() error {
		if s := strings.TrimSpace(m.run("docker", "inspect", "-f", "{{.State.Status}}", "bookinfo-ratings-1")); s != "exited" {
			return errors.New(s)
		}
		return nil
	})
	m.signal(t, "bookinfo-ratings-app-1")
	if a := m.get(t, "bookinfo-outsider-1", "http://10.87.0.16:9080/ratings/0"); a.Error == "" {
		t.Errorf("the program answers past its Envoy: %+v", a)
	}
	m.do("restart", "--timeout", "2", "ratings")
	m.poll(upBound, "checks pass again", func() error { _, err := m.check(); return err })
}

// root is the trust bundle as the authority gives it out.
func (m *mesh) root() string {
	m.t.Helper()
	archive := tar.NewReader(strings.NewReader(m.run("docker", "cp", "bookinfo-ca-1:/run/writ/trust/bundle.pem", "-")))
	if _, err := archive.Next(); err != nil {
		m.t.Fatal(err)
	}
	data, err := io.ReadAll(archive)
	if err != nil || !bytes.Contains(data, []byte("BEGIN CERTIFICATE")) {
		m.t.Fatalf("trust bundle: %v: %q", err, data)
	}
	return string(data)
}

// joins counts who joined with a token since ca's container was made.
func (m *mesh) joins() int { return strings.Count(m.logs("bookinfo-ca-1"), "kind=join") }

func (m *mesh) restart(t *testing.T) {
	root, joins := m.root(), m.joins()
	if joins < len(services)-1 {
		t.Fatalf("%d joins are in the log of ca, want at least %d", joins, len(services)-1)
	}
	m.do("restart", "--timeout", "5")
	m.up("restart")
	if _, err := m.check(); err != nil {
		t.Error(err)
	}
	if m.root() != root {
		t.Error("the root is another one")
	}
	if n := m.joins(); n != joins {
		t.Errorf("%d services joined anew with a token", n-joins)
	}
}

// down takes all containers away. Docker sometimes says of a network with no container in it
// that it "has active endpoints" (moby/moby#42119); it stays then, and the next up uses it.
func (m *mesh) down() {
	m.t.Helper()
	_, err := m.try(append(append([]string{}, m.compose...), "down", "--timeout", "5")...)
	if err != nil && (!strings.Contains(err.Error(), "has active endpoints") || m.do("ps", "--all", "--quiet") != "") {
		m.t.Fatal(err)
	}
	if err != nil {
		m.t.Logf("a network stays: %v", err)
	}
}

// downAndUp also takes away what authz has: it joins anew, the others need not.
func (m *mesh) downAndUp(t *testing.T) {
	root := m.root()
	m.down()
	m.run("docker", "volume", "rm", "bookinfo_authz-state")
	m.up("down and up")
	if _, err := m.check(); err != nil {
		t.Error(err)
	}
	if m.root() != root {
		t.Error("the root is another one")
	}
	if n := m.joins(); n != 1 {
		t.Errorf("%d services joined anew with a token, want authz alone", n)
	}
	m.do("run", "--rm", "join")
}
