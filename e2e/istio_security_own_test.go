package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// pause stops a service without ending it: it answers nobody until resume.
func (m *mesh) pause(name string) (resume func()) {
	m.t.Helper()
	pid := m.pidOf(name)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		m.t.Fatal(err)
	}
	// On a busy machine threads go on until the one that has the signal is run.
	proctest.Eventually(m.t, 20*time.Second, func() error { return stopped(pid) })
	done := false
	resume = func() {
		if !done {
			done = true
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	m.t.Cleanup(resume)
	return resume
}

// stopped says whether every thread of a process stands still.
func stopped(pid int) error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		return fmt.Errorf("process %d has no threads (%w)", pid, err)
	}
	for _, thread := range threads {
		data, err := os.ReadFile(thread)
		if err != nil {
			return err
		}
		if _, state, _ := strings.Cut(string(data), ") "); !strings.HasPrefix(state, "T") {
			return fmt.Errorf("%s: %s", thread, data)
		}
	}
	return nil
}

const ownHead = "---\napiVersion: policy.writ.mesh/v1alpha1\n"

// limited polls a request until the limit refuses it.
func limited(t *testing.T, limit string, ask func() answer) {
	t.Helper()
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := ask(); got.status != 429 || !strings.HasPrefix(got.header.Get("x-writ-denied-by"), "QuotaPolicy "+limit) {
			return fmt.Errorf("got %s, want 429 by %s", got, limit)
		}
		return nil
	})
}

// decided asks until ratelimit decides: a machine that is out of CPU may not answer
// Envoy in time, which closed policies tell by 503.
func decided(t *testing.T, ask func() answer) answer {
	t.Helper()
	var got answer
	proctest.Until(t, 20*time.Second, "ratelimit decides", func() bool {
		got = ask()
		return got.status != 503
	})
	return got
}

// TestQuotaDimensions counts by every dimension of `per`, edited live.
func TestQuotaDimensions(t *testing.T) {
	t.Parallel()
	s := newSigner(t, "k")
	e := newEcho(t, "e")
	m := up(t, writeFiles(t, map[string]string{
		"mesh.yaml": "defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}\n",
		"workloads.yaml": workload("a", "a", e) + workload("b", "b", e) + workload("srv", "srv", e) +
			workloadIn("other", "c", "app: c", fmt.Sprintf("http:8000:%d", e.port)),
		"jwt.yaml":     fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: r}\nspec: {selector: {matchLabels: {app: srv}}, jwtRules: [{issuer: i, jwks: '%s'}]}\n", s.jwks()),
		"gateway.yaml": doorGateway(proctest.Port(t), "istio: ingressgateway") + doorTo("srv"),
	}))
	ask := func(from, method, path string, headers ...string) func() answer {
		return func() answer { return m.rawFrom(from, method, "http://srv.default:8000"+path, headers...) }
	}
	door := func(headers ...string) func() answer {
		return func() answer { return raw("", "GET", m.gateway("door")+"/", headers...) }
	}
	token := func(sub string) string {
		return bearer(s.token("i", map[string]any{"sub": sub, "a": map[string]any{"b": sub}}))
	}
	quota := func(name, spec string) string {
		return ownHead + "kind: QuotaPolicy\nmetadata: {name: " + name + "}\nspec: {selector: {matchLabels: {app: srv}}, whenUnavailable: Deny, " + spec + "}\n"
	}
	for i, tc := range []struct {
		per string
		// one has a value of its own, alike the same value, other another.
		one, alike, other func() answer
	}{
		{"source.principal", ask("a-1", "GET", "/"), ask("a-1", "PUT", "/x"), ask("b-1", "GET", "/")},
		{"source.namespace", ask("a-1", "GET", "/"), ask("b-1", "GET", "/"), ask("c-1", "GET", "/")},
		{"source.ip", ask("a-1", "GET", "/"), ask("a-1", "GET", "/", "x-forwarded-for: 9.9.9.9"), ask("b-1", "GET", "/")},
		{"request.method", ask("a-1", "GET", "/"), ask("b-1", "GET", "/"), ask("a-1", "PUT", "/")},
		{"request.path", ask("a-1", "GET", "/p"), ask("a-1", "GET", "/p?q=1"), ask("a-1", "GET", "/o")},
		{"request.path[/u/{id}/o]", ask("a-1", "GET", "/u/1/o"), ask("b-1", "GET", "/u/x/../%31;v=2/o?q=1"), ask("a-1", "GET", "/u/2/o")},
		{"request.headers[X-User]", ask("a-1", "GET", "/", "x-user: u"), ask("b-1", "GET", "/", "X-USER: u"), ask("a-1", "GET", "/")},
		{"request.auth.claims[sub]", ask("a-1", "GET", "/", token("u")), ask("b-1", "GET", "/", token("u")), ask("a-1", "GET", "/", token("v"))},
		{"request.auth.claims[a][b]", ask("a-1", "GET", "/", token("u")), ask("b-1", "GET", "/", token("u")), ask("a-1", "GET", "/")},
		{"destination.service", ask("a-1", "GET", "/"), ask("c-1", "PUT", "/x"), nil},
		{"everybody", ask("a-1", "GET", "/"), ask("c-1", "PUT", "/x"), nil},
		{"source.principal, request.path", ask("a-1", "GET", "/p"), ask("a-1", "PUT", "/p"), ask("a-1", "GET", "/o")},
	} {
		t.Run(tc.per, func(t *testing.T) {
			write(t, m.dir, "quota.yaml", quota(fmt.Sprintf("q%d", i), `limits: [{per: ["`+strings.ReplaceAll(tc.per, ", ", `", "`)+`"], requests: 2, every: 1h}]`))
			limited(t, fmt.Sprintf("default/q%d limit 0", i), tc.one)
			if got := decided(t, tc.alike); got.status != 429 {
				t.Errorf("the same value: %s", got)
			}
			if tc.other == nil {
				return
			}
			for n, want := range []int{200, 200, 429} {
				got := decided(t, tc.other)
				// One that was counted, and whose answer came too late, is asked again.
				if late := n == 1 && got.status == 429; got.status != want && !late {
					t.Errorf("another value, request %d: %s, want %d", n, got, want)
				}
			}
		})
	}
	t.Run("several limits", func(t *testing.T) {
		write(t, m.dir, "quota.yaml", quota("several", "limits: [{per: [source.principal], requests: 2, every: 1h}, {requests: 4, every: 1h}]"))
		limited(t, "default/several limit", ask("a-1", "GET", "/"))
		if got := ask("b-1", "GET", "/")(); got.status == 429 && !strings.HasSuffix(got.header.Get("x-writ-denied-by"), "limit 1") {
			t.Errorf("b: %s", got)
		}
	})
	t.Run("the limit is raised, then taken away", func(t *testing.T) {
		write(t, m.dir, "quota.yaml", quota("several", "limits: [{per: [source.principal], requests: 1000, every: 1h}]"))
		waitStatus(t, 200, ask("a-1", "GET", "/"))
		write(t, m.dir, "quota.yaml", quota("none", "limits: [{requests: 0, every: 1h}]"))
		limited(t, "default/none limit", ask("a-1", "GET", "/"))
		write(t, m.dir, "quota.yaml", "# none\n")
		waitStatus(t, 200, ask("a-1", "GET", "/"))
	})
	t.Run("observe", func(t *testing.T) {
		write(t, m.dir, "quota.yaml", quota("mark", "limits: [{requests: 0, every: 1h, per: [\"request.headers[x-mark]\"]}]"))
		waitStatus(t, 429, ask("a-1", "GET", "/"))
		write(t, m.dir, "quota.yaml", quota("watch", "mode: observe, limits: [{requests: 0, every: 1h}]"))
		waitStatus(t, 200, ask("a-1", "GET", "/"))
	})
	t.Run("at a gateway", func(t *testing.T) {
		write(t, m.dir, "quota.yaml", ownHead+"kind: QuotaPolicy\nmetadata: {name: door, namespace: istio-system}\nspec: {selector: {matchLabels: {istio: ingressgateway}}, limits: [{per: [source.ip], requests: 2, every: 1h}]}\n")
		waitStatus(t, 429, door("x-forwarded-for: 1.2.3.4"))
		if got := door("x-forwarded-for: 5.6.7.8")(); got.status != 200 {
			t.Errorf("another client: %s", got)
		}
		if got := ask("a-1", "GET", "/")(); got.status != 200 {
			t.Errorf("past the gateway: %s", got)
		}
	})
}

// TestDecidersAway: what RegoPolicy and QuotaPolicy say when their service does
// not answer, and what a Rego rule sees when it does.
func TestDecidersAway(t *testing.T) {
	t.Parallel()
	e := newEcho(t, "e")
	rego := func(name, app, more, module string) string {
		return fmt.Sprintf("%skind: RegoPolicy\nmetadata: {name: %s}\nspec:\n  selector: {matchLabels: {app: %s}}\n  query: data.p.allow\n%s  module: |\n    package p\n    %s\n",
			ownHead, name, app, more, strings.ReplaceAll(module, "\n", "\n    "))
	}
	quota := func(name, app, more string) string {
		return fmt.Sprintf("%skind: QuotaPolicy\nmetadata: {name: %s}\nspec: {selector: {matchLabels: {app: %s}}, limits: [{requests: 1000, every: 1h}]%s}\n", ownHead, name, app, more)
	}
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", e) + workload("shut", "shut", e) + workload("open", "open", e) + workload("watch", "watch", e) + workload("sure", "sure", e) +
			workload("quota-open", "quota-open", e) + workload("quota-shut", "quota-shut", e) + workload("broken", "broken", e),
		"rego.yaml": rego("shut", "shut", "", `default allow := false
allow if {
  input.attributes.source.principal == "spiffe://cluster.local/ns/default/sa/a"
  input.attributes.request.http.method == "GET"
  input.parsed_path[0] == "yes"
  input.parsed_query.q[0] == "1"
  input.attributes.request.http.headers["x-h"] == "v"
}`) + rego("open", "open", "  whenUnavailable: Allow\n", "default allow := false\nallow if input.parsed_query.never[0] == \"1\"") +
			// Envoys decide this one by themselves.
			rego("sure", "sure", "", "default allow := false\nallow if input.parsed_path[0] == \"yes\"") +
			rego("watch", "watch", "  mode: observe\n", "default allow := false") +
			quota("quota-open", "quota-open", "") + quota("quota-shut", "quota-shut", ", whenUnavailable: Deny"),
		// Neither compiles, both are there from the beginning.
		"broken.yaml": rego("broken", "broken", "", "default allow := false\nallow if nonsense(1)"),
		"syntax.yaml": rego("syntax", "broken", "", "allow := {"),
	}))
	get := func(host, path string) func() answer {
		return func() answer { return m.get("a-1", "http://"+host+":8000"+path, "x-h: v") }
	}
	check := func(t *testing.T, name string, ask func() answer, want int) {
		t.Helper()
		if got := ask(); got.status != want {
			t.Errorf("%s: %s, want %d", name, got, want)
		}
	}
	t.Run("all is well", func(t *testing.T) {
		// On a machine starved of processor time the first answers may come too late.
		waitStatus(t, 200, get("shut", "/yes?q=1"))
		waitStatus(t, 403, get("open", "/"))
		waitStatus(t, 200, get("quota-shut", "/"))
		check(t, "refused", get("shut", "/no?q=1"), 403)
		check(t, "observed", get("watch", "/"), 200)
		out, _ := m.writ("status", m.dir)
		for _, want := range []string{"default/sure: envoy (1 proxy)", "default/shut: envoy and authz (1 proxy)", "input.parsed_query.q[0] == \"1\"", "default/watch: authz (1 proxy)"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in:\n%s", want, out)
			}
		}
	})
	t.Run("Rego that does not compile is refused with file and line, and holds back nobody", func(t *testing.T) {
		check(t, "broken", get("broken", "/"), 200)
		out, code := m.writ("status", m.dir)
		for _, want := range []string{"broken.yaml:", "RegoPolicy default/broken", "nonsense", "syntax.yaml:", "RegoPolicy default/syntax", "spec.module"} {
			if !strings.Contains(out, want) {
				t.Errorf("exit code %d, %q is not in:\n%s", code, want, out)
			}
		}
		// The same by an edit: the last good text stays.
		write(t, m.dir, "edit.yaml", rego("edit", "broken", "", "default allow := false"))
		waitStatus(t, 403, get("broken", "/"))
		write(t, m.dir, "edit.yaml", rego("edit", "broken", "", "default allow := true\nallow if nothing.at.all"))
		proctest.Eventually(t, 20*time.Second, func() error {
			if out, _ := m.writ("status", m.dir); !strings.Contains(out, "edit.yaml:") {
				return fmt.Errorf("no word of edit.yaml:\n%s", out)
			}
			return nil
		})
		check(t, "the last good one", get("broken", "/"), 403)
		write(t, m.dir, "edit.yaml", rego("edit", "broken", "", "default allow := true"))
		waitStatus(t, 200, get("broken", "/"))
	})
	t.Run("authz does not answer", func(t *testing.T) {
		resume := m.pause("writ-authz")
		check(t, "closed", get("shut", "/yes?q=1"), 403)
		if got := get("shut", "/yes?q=1")(); got.header.Get("x-writ-denied-by") != "RegoPolicy default/shut (authz does not answer)" {
			t.Errorf("closed, and nobody says why: %s", got)
		}
		check(t, "open", get("open", "/"), 200)
		check(t, "observed", get("watch", "/"), 200)
		check(t, "decided without it", get("sure", "/yes"), 200)
		if got := get("sure", "/no")(); got.status != 403 || got.header.Get("x-writ-denied-by") != "RegoPolicy default/sure" {
			t.Errorf("decided without it: %s", got)
		}
		resume()
		waitStatus(t, 200, get("shut", "/yes?q=1"))
	})
	t.Run("authz is killed", func(t *testing.T) {
		m.kill("writ-authz")
		waitStatus(t, 200, get("shut", "/yes?q=1"))
		waitStatus(t, 403, get("open", "/"))
	})
	t.Run("ratelimit does not answer", func(t *testing.T) {
		resume := m.pause("writ-ratelimit")
		check(t, "open", get("quota-open", "/"), 200)
		if got := get("quota-shut", "/")(); got.status != 503 || got.header.Get("x-writ-denied-by") != "QuotaPolicy default/quota-shut (ratelimit does not answer)" {
			t.Errorf("closed: %s", got)
		}
		resume()
		waitStatus(t, 200, get("quota-shut", "/"))
	})
}
