package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// TestMain builds the binaries that the tests run, or is a program of a mesh.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == spiffeProgram {
		fmt.Fprintln(os.Stderr, runSpiffeProgram())
		os.Exit(1)
	}
	out, err := exec.Command("make", "-C", "..", "build").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// ready is the part of the ready file that the contract promises.
type ready struct {
	Revision    string `json:"revision"`
	TrustDomain string `json:"trustDomain"`
	Workloads   []struct {
		Name           string            `json:"name"`
		Namespace      string            `json:"namespace"`
		ServiceAccount string            `json:"serviceAccount"`
		Address        string            `json:"address"`
		Ports          map[string]uint32 `json:"ports"`
		Proxy          string            `json:"proxy"`
		Admin          string            `json:"admin"`
	} `json:"workloads"`
	Gateways []struct {
		Name  string `json:"name"`
		URL   string `json:"url"`
		Admin string `json:"admin"`
	} `json:"gateways"`
	Services map[string]string `json:"services"`
}

// mesh is a running `writ up`.
type mesh struct {
	t     *testing.T
	dir   string
	ready ready
	cmd   *exec.Cmd
	err   *proctest.Output
	done  chan struct{}
}

func binary(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// writeFiles writes a mesh directory.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		write(t, dir, name, files[name])
	}
	return dir
}

// write replaces a file in one step, as an editor does.
func write(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(filepath.Dir(path), ".tmp-"+filepath.Base(path))
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

// copyDir copies a mesh directory, so that a test can edit it.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(to, ".writ")); err != nil {
		t.Fatal(err)
	}
	return to
}

// up starts a mesh and ends it with the test.
func up(t *testing.T, dir string, args ...string) *mesh {
	t.Helper()
	m := start(t, dir, args...)
	m.waitReady()
	return m
}

// start starts a mesh without waiting for it.
func start(t *testing.T, dir string, args ...string) *mesh {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ready.json")
	m := &mesh{t: t, dir: dir, err: new(proctest.Output), done: make(chan struct{})}
	m.cmd = exec.Command(binary(t, "writ"), append([]string{"up", dir, "--ready-file", file}, args...)...)
	m.cmd.Stdout, m.cmd.Stderr = m.err, m.err
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.done)
		_ = m.cmd.Wait()
	}()
	t.Cleanup(m.stop)
	return m
}

func (m *mesh) waitReady() {
	m.t.Helper()
	file := m.cmd.Args[4]
	proctest.Eventually(m.t, 40*time.Second, func() error {
		select {
		case <-m.done:
			m.t.Fatalf("writ up ended: %s\n%s", m.cmd.ProcessState, m.err)
		default:
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, m.err)
		}
		return json.Unmarshal(data, &m.ready)
	})
}

func (m *mesh) stop() {
	if m.t.Failed() {
		m.t.Logf("writ up: %s", m.err)
		if os.Getenv("WRIT_E2E_LOGS") != "" {
			m.dumpLogs()
		}
	}
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.done:
	case <-time.After(20 * time.Second):
		_ = m.cmd.Process.Kill()
		m.t.Errorf("writ up did not end within 20 s of SIGTERM")
	}
}

// dumpLogs shows the end of every log of a failed test's mesh.
func (m *mesh) dumpLogs() {
	logs, _ := filepath.Glob(filepath.Join(m.dir, ".writ", "logs", "*.log"))
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil || len(data) == 0 {
			continue
		}
		if len(data) > 3000 {
			data = data[len(data)-3000:]
		}
		m.t.Logf("---- %s\n%s", filepath.Base(path), data)
	}
}

// writ runs the operator's command and returns its output and exit code.
func (m *mesh) writ(args ...string) (string, int) {
	m.t.Helper()
	return writ(m.t, args...)
}

func writ(t *testing.T, args ...string) (string, int) {
	t.Helper()
	out, err := exec.Command(binary(t, "writ"), args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

// proxyOf gives the explicit proxy of a replica, for example reviews-v2-1.
func (m *mesh) proxyOf(replica string) string {
	m.t.Helper()
	for _, w := range m.ready.Workloads {
		if w.Name == replica {
			return w.Proxy
		}
	}
	m.t.Fatalf("no workload %s in the ready file", replica)
	return ""
}

func (m *mesh) addressOf(replica string) string {
	m.t.Helper()
	for _, w := range m.ready.Workloads {
		if w.Name == replica {
			return w.Address
		}
	}
	m.t.Fatalf("no workload %s in the ready file", replica)
	return ""
}

// answer is what came of a request.
type answer struct {
	status int
	header http.Header
	body   string
	proto  string
	err    error
}

func (a answer) String() string {
	if a.err != nil {
		return a.err.Error()
	}
	return fmt.Sprintf("%d %q (denied by %q)", a.status, a.body, a.header.Get("x-writ-denied-by"))
}

// request is what is sent; headers are "name: value".
type request struct {
	method  string
	url     string
	headers []string
	body    string
}

func client(proxy string) *http.Client {
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100}
	if proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil {
			panic(err)
		}
		tr.Proxy = http.ProxyURL(u)
	}
	return &http.Client{
		Transport: tr, Timeout: 15 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func do(c *http.Client, r request) answer {
	if r.method == "" {
		r.method = http.MethodGet
	}
	req, err := http.NewRequest(r.method, r.url, strings.NewReader(r.body))
	if err != nil {
		return answer{err: err}
	}
	for _, h := range r.headers {
		k, v, _ := strings.Cut(h, ": ")
		if strings.EqualFold(k, "host") {
			req.Host = v
			continue
		}
		req.Header.Add(k, v)
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(body), proto: resp.Proto, err: err}
}

// from sends a request as a workload does: through its sidecar.
func (m *mesh) from(replica string, r request) answer {
	m.t.Helper()
	c := client(m.proxyOf(replica))
	defer c.CloseIdleConnections()
	return do(c, r)
}

// get is from with a GET of a URL.
func (m *mesh) get(replica, target string, headers ...string) answer {
	m.t.Helper()
	return m.from(replica, request{url: target, headers: headers})
}

// gateway gives the URL of a gateway.
func (m *mesh) gateway(name string) string {
	m.t.Helper()
	for _, g := range m.ready.Gateways {
		if g.Name == name {
			return g.URL
		}
	}
	m.t.Fatalf("no gateway %s in the ready file", name)
	return ""
}

// echo is a program behind a sidecar that the test itself plays: it answers with
// its name and what it saw.
type echo struct {
	name  string
	port  int
	count atomic.Int64
	// handle, if set, answers instead.
	handle atomic.Pointer[http.HandlerFunc]
}

type seen struct {
	Name    string      `json:"name"`
	Method  string      `json:"method"`
	Path    string      `json:"path"`
	Query   string      `json:"query"`
	Host    string      `json:"host"`
	Proto   string      `json:"proto"`
	Headers http.Header `json:"headers"`
	Body    string      `json:"body"`
}

func newEcho(t *testing.T, name string) *echo {
	t.Helper()
	e := &echo{name: name}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: e, ReadHeaderTimeout: patience, Protocols: protocols()}}
	srv.Start()
	t.Cleanup(srv.Close)
	e.port = l.Addr().(*net.TCPAddr).Port
	return e
}

// patience is how long a program waits for the first request of a connection. An Envoy
// under load opens some that it does not need at once, and a request that it sends over
// one just when the program closes it fails.
const patience = 10 * time.Minute

// protocols lets a server speak HTTP/1.1 and HTTP/2 in plain text.
func protocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.count.Add(1)
	if h := e.handle.Load(); h != nil {
		(*h)(w, r)
		return
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("x-echo", e.name)
	_ = json.NewEncoder(w).Encode(seen{
		Name: e.name, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Host: r.Host, Proto: r.Proto, Headers: r.Header, Body: string(body),
	})
}

func (e *echo) answerWith(h http.HandlerFunc) { e.handle.Store(&h) }

// saw decodes what an echo answered.
func (a answer) saw(t *testing.T) seen {
	t.Helper()
	var s seen
	if a.err != nil || json.Unmarshal([]byte(a.body), &s) != nil {
		t.Fatalf("no echo: %s", a)
	}
	return s
}

// workload writes a LocalWorkload whose program the test plays.
func workload(name, app string, e *echo, extra ...string) string {
	labels := "app: " + app
	for _, x := range extra {
		labels += ", " + x
	}
	return fmt.Sprintf(`---
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: %s, namespace: default, labels: {%s}}
spec:
  serviceAccount: %s
  ports: [{name: http, port: 8000, app: %d}]
`, name, labels, name, e.port)
}

// doorGateway is a gateway named door, with the head of the VirtualService whose
// http rules follow.
func doorGateway(port int, selector string) string {
	return fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door, namespace: istio-system}
spec:
  selector: {%s}
  servers: [{port: {number: %d, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: door}
spec:
  hosts: ["*"]
  gateways: [istio-system/door]
`, selector, port)
}

// doorTo completes a doorGateway with one route to a workload of the test.
func doorTo(workload string) string {
	return "  http: [{route: [{destination: {host: " + workload + ", port: {number: 8000}}}]}]\n"
}

// denyPath refuses a path of the workload b, and nothing else: an edit of the
// path shows when it is live.
func denyPath(path string) string {
	return fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: b}
spec:
  action: DENY
  selector: {matchLabels: {app: b}}
  rules: [{to: [{operation: {paths: [%q]}}]}]
`, path)
}

// load sends requests at a rate until stopped, and counts what is not 200.
type load struct {
	sent, failed atomic.Int64
	mu           sync.Mutex
	failures     []string
	cancel       context.CancelFunc
	done         chan struct{}
}

// startLoad begins a load of rps requests per second through proxy ("" for none).
func startLoad(t *testing.T, proxy, target string, rps int, headers ...string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel, done: make(chan struct{})}
	c := client(proxy)
	go func() {
		defer close(l.done)
		defer c.CloseIdleConnections()
		tick := time.NewTicker(time.Second / time.Duration(rps))
		defer tick.Stop()
		slots := make(chan struct{}, 64)
		var wg sync.WaitGroup
		defer wg.Wait()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				defer func() { <-slots }()
				l.one(c, request{url: target, headers: headers})
			})
		}
	}()
	t.Cleanup(func() { cancel(); <-l.done })
	return l
}

func (l *load) one(c *http.Client, r request) {
	a := do(c, r)
	l.sent.Add(1)
	if a.err == nil && a.status == http.StatusOK {
		return
	}
	l.failed.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failures) < 10 {
		l.failures = append(l.failures, fmt.Sprintf("%s: %s %v", time.Now().Format("15:04:05.000"), a, a.header))
	}
}

// stop ends the load and says what failed.
func (l *load) stop() (sent, failed int64, failures string) {
	l.cancel()
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent.Load(), l.failed.Load(), strings.Join(l.failures, "\n")
}
