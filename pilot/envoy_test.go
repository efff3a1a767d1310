package pilot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/revision"
)

// bound is for everything that is waited for.
const bound = 30 * time.Second

// running is a pilot over a real mesh directory.
type running struct {
	*Pilot
	dir, addr string
}

func start(t *testing.T, files map[string]string) *running {
	t.Helper()
	return startWith(t, files, meshdir.Options{})
}

func startWith(t *testing.T, files map[string]string, options meshdir.Options) *running {
	t.Helper()
	dir := t.TempDir()
	options.Dir = dir
	r := &running{dir: dir, addr: proctest.Address(t)}
	for name, text := range files {
		r.write(t, name, text)
	}
	var logs bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logs, nil))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(logs.String())
		}
	})
	rt := &service.Runtime{Log: log, Metrics: prometheus.NewRegistry(), Health: &service.Health{}}
	p, err := newPilot(Options{
		Source:   meshdir.NewReader(options),
		Modified: func() time.Time { return newest(dir, "") },
		Log:      log, Metrics: rt.Metrics, Health: rt.Health,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Pilot = p
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- service.RunTasks(ctx, p.Run, p.lists.Run, p.keySets.Run, func(ctx context.Context) error { return p.ServePlaintext(ctx, r.addr, rt) })
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("pilot: %v", err)
		}
	})
	return r
}

func (r *running) write(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// serving is the state of the revision that clients are given.
func (r *running) serving() (uint64, revision.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev, _ := r.tracker.Serving()
	return rev.Number, rev.State
}

func (r *running) awaitLive(t testing.TB, number uint64) {
	t.Helper()
	proctest.Until(t, bound, fmt.Sprintf("revision %d is live", number), func() bool {
		n, s := r.serving()
		return n == number && s == revision.Live
	})
}

func startEnvoy(t *testing.T, pilotAddr, id, mode, api string) {
	t.Helper()
	runEnvoy(t, envoytest.Find(t), pilotAddr, id, mode, api)
}

// runEnvoy gives what the Envoy writes.
func runEnvoy(t *testing.T, bin, pilotAddr, id, mode, api string, args ...string) *proctest.Output {
	t.Helper()
	host, port, _ := net.SplitHostPort(pilotAddr)
	bootstrap := fmt.Sprintf(`
node:
  id: %s
  cluster: test
  metadata: {LABELS: {app: client}, INTERCEPTION_MODE: %s}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}
dynamic_resources:
  ads_config: {api_type: %s, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: writ-agent}}]}
  cds_config: {ads: {}, resource_api_version: V3}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: writ-agent
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: writ-agent, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]}
`, id, mode, proctest.Port(t), api, host, port)
	file := filepath.Join(t.TempDir(), "bootstrap.yaml")
	if err := os.WriteFile(file, []byte(bootstrap), 0o600); err != nil {
		t.Fatal(err)
	}
	return envoytest.Run(t, bin, file, append(args, "--file-flush-interval-msec", "50")...).Output
}

func backend(t *testing.T, answer string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) }))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://127.0.0.1:")
}

func entry(host, port string) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: default}
spec:
  hosts: [%s.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: %s}}]
`, host, host, port)
}

func routeTo(host, to string) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s, namespace: default}
spec:
  hosts: [%s.example]
  http: [{route: [{destination: {host: %s.example}}]}]
`, host, host, to)
}

// TestEnvoyFollowsEdits lets a real Envoy follow edits of files while requests
// flow: a route moves to a service that did not exist before and back, and the
// service goes, a dozen times; no request fails, and each edit is live within 1 s.
func TestEnvoyFollowsEdits(t *testing.T) {
	t.Parallel()
	for i, api := range []string{"DELTA_GRPC", "GRPC"} {
		t.Run(api, func(t *testing.T) { followEdits(t, api, fmt.Sprintf("127.9.77.%d", i+1)) })
	}
}

func followEdits(t *testing.T, api, address string) {
	one, two := backend(t, "one"), backend(t, "two")
	r := start(t, map[string]string{"one.yaml": entry("one", one), "route.yaml": routeTo("one", "one")})
	startEnvoy(t, r.addr, "sidecar~"+address+"~client-1.default~default.svc.cluster.local", "NONE", api)
	proxy := &url.URL{Scheme: "http", Host: address + ":15007"}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy)}, Timeout: 10 * time.Second}
	get := func() (string, error) {
		resp, err := client.Get("http://one.example/")
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			return "", fmt.Errorf("%s: %s", resp.Status, body)
		}
		return string(body), err
	}
	proctest.Until(t, bound, "the first answer", func() bool { s, err := get(); return err == nil && s == "one" })
	proctest.Until(t, bound, "the first revision is live", func() bool { _, s := r.serving(); return s == revision.Live })

	stop, done := make(chan struct{}), make(chan struct{})
	var failures, requests atomic.Int64
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			requests.Add(1)
			if _, err := get(); err != nil {
				failures.Add(1)
				t.Errorf("request failed: %v", err)
			}
		}
	}()
	var slowest time.Duration
	edit := func(want string, change func()) {
		before := time.Now()
		change()
		proctest.Until(t, bound, "the edit is in effect", func() bool { s, err := get(); return err == nil && s == want })
		slowest = max(slowest, time.Since(before))
	}
	for range 12 {
		edit("two", func() {
			r.write(t, "two.yaml", entry("two", two))
			r.write(t, "route.yaml", routeTo("one", "two"))
		})
		edit("one", func() {
			r.write(t, "route.yaml", routeTo("one", "one"))
			if err := os.Remove(filepath.Join(r.dir, "two.yaml")); err != nil {
				t.Fatal(err)
			}
		})
	}
	close(stop)
	<-done
	n, _ := r.serving()
	r.awaitLive(t, n)
	t.Logf("%d requests, %d failures, slowest edit %v, revision %d", requests.Load(), failures.Load(), slowest, n)
	if slowest > time.Second {
		t.Errorf("an edit took %v", slowest)
	}
}

// TestRealRejection gives a real Envoy what it does not accept: the revision is
// taken back, the status names the object, and traffic goes on.
func TestRealRejection(t *testing.T) {
	t.Parallel()
	one := backend(t, "one")
	r := start(t, map[string]string{"one.yaml": entry("one", one), "route.yaml": routeTo("one", "one")})
	const address = "127.9.77.9"
	startEnvoy(t, r.addr, "sidecar~"+address+"~client-1.default~default.svc.cluster.local", "NONE", "DELTA_GRPC")
	r.awaitLive(t, 1)
	proctest.Until(t, bound, "the Envoy is live", func() bool {
		st, _ := r.status()
		return len(st.Clients) == 1 && st.Clients[0].AckedRevision == 1
	})
	r.write(t, "route.yaml", strings.Replace(routeTo("one", "one"), "http: [{", "http: [{match: [{uri: {regex: '(abc|def|ghi){60}'}}], ", 1))
	proctest.Until(t, bound, "the rejection", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		list := r.tracker.Revisions()
		return len(list) == 2 && list[0].State == revision.Rejected
	})
	st, _ := r.status()
	if got, want := st.Revisions[0].Rejection.Objects, []string{"VirtualService default/one (route.yaml:1)"}; !slices.Equal(got, want) {
		t.Errorf("blamed %q, want %q", got, want)
	}
	if st.Serving != 1 {
		t.Errorf("serving %d", st.Serving)
	}
	if st.Clients[0].AckedRevision != 1 || !strings.Contains(st.Clients[0].LastError, "RE2") {
		t.Errorf("client: %v", st.Clients[0])
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: address + ":15007"})}, Timeout: 10 * time.Second}
	resp, err := client.Get("http://one.example/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("after the rejection: %s", resp.Status)
	}
	r.write(t, "route.yaml", routeTo("one", "one")+"# as it was\n")
	r.write(t, "two.yaml", entry("two", one))
	proctest.Until(t, bound, "the next revision is live", func() bool { n, s := r.serving(); return n >= 3 && s == revision.Live })
}
