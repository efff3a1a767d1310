package pilot

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestListLive has a real Envoy decide by a list whose server breaks, changes and
// goes away.
func TestListLive(t *testing.T) {
	t.Parallel()
	const address = "127.9.77.20"
	body := new(atomic.Value)
	body.Store("")
	lists := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		text := body.Load().(string)
		if text == "" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(lists.Close)
	port := proctest.Port(t)
	r := start(t, map[string]string{
		"one.yaml": entry("one", backend(t, "one")),
		"gateway.yaml": fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: istio-system, annotations: {policy.writ.mesh/denied-by: "true"}}
spec:
  selector: {app: client}
  servers: [{port: {number: %d, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: one, namespace: default}
spec:
  hosts: ["*"]
  gateways: [istio-system/gw]
  http: [{route: [{destination: {host: one.example}}]}]
`, port),
		"list.yaml": fmt.Sprintf(`kind: AccessList
metadata: {name: partners, namespace: istio-system}
spec:
  action: ALLOW
  match: source.ip
  entries: [127.0.0.9]
  from: {url: "%s/partners", refresh: 1s}
`, lists.URL),
	})
	startEnvoy(t, r.addr, "router~"+address+"~gw.istio-system~istio-system.svc.cluster.local", "NONE", "DELTA_GRPC")
	ask := func() string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s:%d/", address, port), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
		if err != nil {
			return err.Error()
		}
		_ = resp.Body.Close()
		return fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("x-writ-denied-by"))
	}
	comes := func(what, want string) {
		t.Helper()
		proctest.Eventually(t, bound, func() error {
			if got := ask(); got != want {
				return fmt.Errorf("%s: the answer is %q, want %q", what, got, want)
			}
			return nil
		})
	}
	shows := func(want string) {
		t.Helper()
		proctest.Eventually(t, bound, func() error {
			st, _ := r.status()
			for _, p := range st.Problems {
				if p.GetFile() == "list.yaml" && strings.Contains(p.GetMessage(), want) {
					return nil
				}
			}
			return fmt.Errorf("the status says nothing of %q: %v", want, st.Problems)
		})
	}
	const refused = "403 AccessList istio-system/partners rule 1"
	comes("no list yet", refused)
	shows("the server answers with status 503; until there are some")
	body.Store("127.0.0.1\n")
	comes("the first list", "200 ")
	body.Store("127.0.0.1\n<html>\n")
	shows("line 2 is not an IP address or CIDR block; the 1 of ")
	if got := ask(); got != "200 " {
		t.Errorf("a broken list: %q", got)
	}
	body.Store("# nobody\n10.0.0.1\n")
	comes("another list", refused)
	lists.Close()
	shows("connection refused; the 1 of ")
	if got := ask(); got != refused {
		t.Errorf("the server is away: %q", got)
	}
}

// TestListOutlivesARestart: what was good last is in force before the first look.
func TestListOutlivesARestart(t *testing.T) {
	state := t.TempDir()
	lists := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("10.0.0.1\n")) }))
	t.Cleanup(lists.Close)
	files := map[string]string{"list.yaml": "kind: AccessList\nmetadata: {name: a}\nspec: {action: ALLOW, match: source.ip, from: {url: \"" + lists.URL + "\"}}\n"}
	inForce := func(f *fixture) []string {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.fetched["default/a"].Entries
	}
	f := newFixture(t, state, files)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.lists.Run(ctx) }()
	proctest.Until(t, bound, "the list is in force", func() bool { return len(inForce(f)) == 1 })
	stop()
	<-done
	f.stop()
	lists.Close()
	f = newFixture(t, state, files)
	proctest.Until(t, bound, "the list is in force", func() bool { return len(inForce(f)) == 1 })
	other := besides{revoked: &model.Revoked{}, fetched: map[string]model.Fetched{"a/b": {}}}
	if other.same(besides{revoked: &model.Revoked{}}) {
		t.Error("entries from elsewhere are nothing new")
	}
}
