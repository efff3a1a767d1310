package authz

import (
	"fmt"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/writ-mesh/writ/internal/proctest"
)

// A new version of a bundle has decided what came of late before it decides anything else:
// nothing is evaluated when it comes into force, and nobody gets what the one before said.
func TestBundleDecidesAhead(t *testing.T) {
	const callers = 20
	host := newBundleHost(t)
	m := newMesh(t)
	m.apply(t, remotePolicy("default/remote", host.URL+"/p.tar.gz"))
	ask := func(n int) bool {
		return allowed(m.check(t, "default/remote", func(a *authv3.AttributeContext) { a.Request.Http.Headers["x-user"] = fmt.Sprint(n) }))
	}
	policy := func(even bool) string {
		return fmt.Sprintf(`allow if { n := to_number(input.attributes.request.http.headers["x-user"]); (n %% 2 == 0) == %v }`, even)
	}
	inForce := func(even bool) {
		t.Helper()
		proctest.Eventually(t, 30*time.Second, func() error {
			if got := ask(callers + 2); got != even { // not one of those who are asked about
				return fmt.Errorf("allowed %v: %s", got, m.log)
			}
			return nil
		})
	}
	host.set(policyBundle(t, "1", policy(true)))
	inForce(true)
	for n := range callers {
		ask(n)
	}
	for round, even := range []bool{false, true, false} {
		before := sample(t, m.reg, "writ_authz_cache_ahead_total")
		host.set(policyBundle(t, fmt.Sprint(2+round), policy(even)+"\nround := "+fmt.Sprint(round)))
		inForce(even)
		misses := m.lookups(t, "miss")
		for n := range callers {
			if got := ask(n); got != (n%2 == 0 == even) {
				t.Errorf("round %d, caller %d: allowed %v", round, n, got)
			}
		}
		if now := m.lookups(t, "miss"); now != misses {
			t.Errorf("round %d: %d requests were evaluated", round, now-misses)
		}
		if kept, _ := m.asks.cache.Size(); kept > callers+2 {
			t.Errorf("round %d: %d decisions are kept, some of what decides no more", round, kept)
		}
		if made := sample(t, m.reg, "writ_authz_cache_ahead_total") - before; made < callers {
			t.Errorf("round %d: %v decisions were made ahead, want %d", round, made, callers)
		}
	}
}

// Nothing is remembered of a request in which there may be a secret.
func TestSecretsAreNotRemembered(t *testing.T) {
	const token = "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.x"
	for name, c := range map[string]struct {
		policy string
		change func(*authv3.AttributeContext_HttpRequest)
		want   bool
	}{
		"a method":             {policy: `allow if input.attributes.request.http.method == "GET"`, want: true},
		"a path":               {policy: `allow if input.parsed_path[0] == "a"`, want: true},
		"a header":             {policy: `allow if input.attributes.request.http.headers["x-user"] == "a"`, want: true},
		"the token":            {policy: `allow if input.attributes.request.http.headers.authorization == "a"`},
		"a cookie":             {policy: `allow if input.attributes.request.http.headers.cookie == "a"`},
		"all headers":          {policy: `allow if input.attributes.request.http.headers[_] == "a"`},
		"a body":               {policy: `allow if input.attributes.request.http.body == "a"`},
		"a token in a header":  {policy: `allow if input.attributes.request.http.headers["x-user"] == "a"`, change: func(h *authv3.AttributeContext_HttpRequest) { h.Headers["x-user"] = token }},
		"a token in the query": {policy: `allow if input.parsed_path[0] == "a"`, change: func(h *authv3.AttributeContext_HttpRequest) { h.Path = "/a?access_token=a" }},
		"a query":              {policy: `allow if input.parsed_path[0] == "a"`, change: func(h *authv3.AttributeContext_HttpRequest) { h.Path = "/a?page=1" }, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t)
			m.apply(t, regoPolicy("default/a", c.policy))
			m.check(t, "default/a", func(a *authv3.AttributeContext) {
				a.Request.Http.Headers["x-user"], a.Request.Http.Headers["authorization"], a.Request.Http.Headers["cookie"] = "u", token, "a=b"
				if c.change != nil {
					c.change(a.Request.Http)
				}
			})
			kept := m.asks.cache.Select(func(*decided) bool { return true })
			if len(kept) != 1 {
				t.Fatalf("%d decisions are kept", len(kept))
			}
			if got := kept[0].Value.of != nil; got != c.want {
				t.Errorf("remembered %v, want %v", got, c.want)
			}
		})
	}
}
