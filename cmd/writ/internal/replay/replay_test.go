package replay

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/recording"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
)

const workloads = `
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: shop, labels: {app: shop}}
spec: {serviceAccount: shop, ports: [{name: http, port: 8000}]}
---
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: web, labels: {app: web}}
spec: {serviceAccount: web, ports: [{name: http, port: 8000}]}
---
`

const denyDelete = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-delete
  annotations: {istio.io/dry-run: "true"} # not yet
spec:
  action: DENY
  selector: {matchLabels: {app: shop}}
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
`

func readMesh(t *testing.T, policies string) *model.Mesh {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"mesh.yaml": "trustDomain: cluster.local\n", "all.yaml": workloads + policies} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, problems := meshdir.Assume(meshdir.Options{Dir: dir, CompileRego: rego.Check})
	if bad := meshdir.Errors(problems); len(bad) > 0 {
		t.Fatal(bad)
	}
	return m
}

func regoDecides(allow bool) Rego {
	return func(*model.RegoPolicy, *authv3.CheckRequest, string, map[string]any) (bool, string, error) {
		return allow, "", nil
	}
}

// seen is a request of web to shop that was allowed.
func seen(change func(*recording.Seen)) *recording.Seen {
	s := &recording.Seen{
		Time: time.Now(), Count: 1, From: "spiffe://cluster.local/ns/default/sa/web", To: "spiffe://cluster.local/ns/default/sa/shop",
		Port: 8000, Method: "GET", Host: "shop", Path: "/", Headers: map[string]string{}, AllHeaders: true, Allowed: true,
	}
	change(s)
	return s
}

func policy(kind, spec string) string {
	return "apiVersion: " + map[bool]string{true: "policy.writ.mesh/v1alpha1", false: "security.istio.io/v1"}[kind == "RegoPolicy"] +
		"\nkind: " + kind + "\nmetadata: {name: p}\nspec: {selector: {matchLabels: {app: shop}}, " + spec + "}\n"
}

// TestDecide: what can be told from what is recorded, and what cannot.
func TestDecide(t *testing.T) {
	header := policy("AuthorizationPolicy", "action: DENY, rules: [{when: [{key: 'request.headers[x-user]', values: [mallory]}]}]")
	claim := policy("AuthorizationPolicy", "action: ALLOW, rules: [{when: [{key: 'request.auth.claims[email]', values: ['a@b.example']}]}]") +
		"---\n" + policy("RequestAuthentication", "jwtRules: [{issuer: i, jwksUri: 'https://keys.example/'}]")
	regoPolicy := policy("RegoPolicy", `query: data.p.allow, module: "package p\nallow if input.attributes.request.http.headers.cookie"`)
	pathPolicy := policy("RegoPolicy", `query: data.p.allow, module: "package p\nallow if input.parsed_path[0] == \"a\""`)
	allPolicy := policy("RegoPolicy", `query: data.p.allow, module: "package p\nallow if count(input) > 0"`)
	pseudo := policy("AuthorizationPolicy", "action: DENY, rules: [{when: [{key: 'request.headers[:path]', values: [/no]}]}]")
	body := policy("RegoPolicy", `query: data.p.allow, module: "package p\nallow if input.parsed_body.x"`)
	for name, c := range map[string]struct {
		policies string
		change   func(*recording.Seen)
		rego     bool
		want     string
	}{
		"no policy":                  {"", func(*recording.Seen) {}, true, allowed},
		"a dry run":                  {denyDelete, func(s *recording.Seen) { s.Method = "DELETE" }, true, allowed},
		"denied":                     {strings.Replace(denyDelete, `"true"`, `"false"`, 1), func(s *recording.Seen) { s.Method = "DELETE" }, true, refused},
		"another method":             {strings.Replace(denyDelete, `"true"`, `"false"`, 1), func(*recording.Seen) {}, true, allowed},
		"by a header":                {header, func(s *recording.Seen) { s.Headers["x-user"] = "mallory" }, true, refused},
		"by another header":          {header, func(s *recording.Seen) { s.Headers["x-user"] = "alice" }, true, allowed},
		"without the header":         {header, func(*recording.Seen) {}, true, allowed},
		"headers are not known":      {header, func(s *recording.Seen) { s.AllHeaders = false }, true, unknown},
		"the header is redacted":     {header, func(s *recording.Seen) { s.Headers["x-user"] = decisionlog.Redacted }, true, unknown},
		"by a claim":                 {claim, func(s *recording.Seen) { s.Claims = map[string]any{"iss": "i", "email": "a@b.example"} }, true, allowed},
		"by another claim":           {claim, func(s *recording.Seen) { s.Claims = map[string]any{"iss": "i", "email": "x"} }, true, refused},
		"the claim is redacted":      {claim, func(s *recording.Seen) { s.Claims = map[string]any{"iss": "i", "email": decisionlog.Redacted} }, true, unknown},
		"of another issuer":          {claim, func(s *recording.Seen) { s.Claims = map[string]any{"iss": "j"} }, true, unknown},
		"its token was refused":      {claim, func(s *recording.Seen) { s.Rule, s.Allowed = "RequestAuthentication default/p (Jwt is expired)", false }, true, unknown},
		"Rego allows":                {regoPolicy, func(*recording.Seen) {}, true, allowed},
		"Rego refuses":               {regoPolicy, func(*recording.Seen) {}, false, refused},
		"Rego reads what is secret":  {regoPolicy, func(s *recording.Seen) { s.Headers["cookie"] = decisionlog.Redacted }, true, unknown},
		"Rego, and another secret":   {regoPolicy, func(s *recording.Seen) { s.Headers["authorization"] = decisionlog.Redacted }, true, allowed},
		"Rego, and no headers":       {regoPolicy, func(s *recording.Seen) { s.AllHeaders = false }, true, unknown},
		"Rego of the path alone":     {pathPolicy, func(s *recording.Seen) { s.AllHeaders = false }, true, allowed},
		"Rego of all, no headers":    {allPolicy, func(s *recording.Seen) { s.AllHeaders = false }, true, unknown},
		"a pseudo-header":            {pseudo, func(s *recording.Seen) { s.AllHeaders, s.Path = false, "/no" }, true, refused},
		"a pseudo-header, redacted":  {pseudo, func(s *recording.Seen) { s.Query = "x=" + decisionlog.Redacted }, true, unknown},
		"Rego reads the body":        {body, func(s *recording.Seen) { s.Body = true }, true, unknown},
		"Rego, without a body":       {body, func(*recording.Seen) {}, false, refused},
		"a workload that is gone":    {"", func(s *recording.Seen) { s.To = "spiffe://cluster.local/ns/default/sa/gone" }, true, unknown},
		"the replica that reported":  {"", func(s *recording.Seen) { s.Proxy = "sidecar~10.0.0.1~shop-1.default~x" }, true, allowed},
		"a replica that runs not":    {"", func(s *recording.Seen) { s.Proxy = "sidecar~10.0.0.1~shop-9.default~x" }, true, unknown},
		"outside of a strict mesh":   {"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: d, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n", func(s *recording.Seen) { s.From = "" }, true, refused},
		"outside of one that is not": {"", func(s *recording.Seen) { s.From = "" }, true, allowed},
	} {
		t.Run(name, func(t *testing.T) {
			v := New(readMesh(t, c.policies), regoDecides(c.rego)).Decide(t.Context(), seen(c.change))
			if v.Outcome != c.want {
				t.Errorf("%s by %s, want %s", v.Outcome, v.By, c.want)
			}
		})
	}
}

func source(list ...*recording.Seen) Source {
	return func(each func(*recording.Seen) error) error {
		for _, s := range list {
			if err := each(s); err != nil {
				return err
			}
		}
		return nil
	}
}

// TestCandidate: what flips is told by caller and request, with counts.
func TestCandidate(t *testing.T) {
	m := New(readMesh(t, strings.Replace(denyDelete, `"true"`, `"false"`, 1)), nil)
	del := func(s *recording.Seen) { s.Method = "DELETE"; s.Count = 3 }
	r, err := Candidate(context.Background(), m, source(seen(func(*recording.Seen) {}), seen(del), seen(del),
		seen(func(s *recording.Seen) { s.Allowed, s.Rule = false, "AuthorizationPolicy default/old rule 0" }),
		seen(func(s *recording.Seen) { s.To = "spiffe://cluster.local/ns/default/sa/gone" })))
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests != 9 || r.Unchanged != 1 || len(r.Flips) != 2 || len(r.Unknown) != 1 ||
		r.Flips[1] != (Case{From: "cluster.local/ns/default/sa/web", Workload: "default/shop", Method: "DELETE", Path: "/", Count: 6, Was: allowed, Now: refused, By: "AuthorizationPolicy default/deny-delete rule 0"}) ||
		r.Flips[0].Was != refused || r.Flips[0].Now != allowed {
		t.Errorf("%+v", r)
	}
}

// TestPromotion: of a RegoPolicy its decider's word counts; of an AuthorizationPolicy the
// rules, and what the Envoy said where they cannot tell.
func TestPromotion(t *testing.T) {
	ref := func(kind string) model.Ref { return model.Ref{Kind: kind, Namespace: "default", Name: "p"} }
	observed := func(rule string) func(*recording.Seen) {
		return func(s *recording.Seen) { s.Observed = []string{rule} }
	}
	header := policy("AuthorizationPolicy", "action: DENY, rules: [{when: [{key: 'request.headers[x-user]', values: [mallory]}]}]")
	enforcedDelete := strings.Replace(denyDelete, `"true"`, `"false"`, 1)
	for name, c := range map[string]struct {
		before, kind, policies   string
		seen                     *recording.Seen
		flips, unknown, requests int
	}{
		"Rego would refuse":  {"", "RegoPolicy", "", seen(observed("RegoPolicy default/p")), 1, 0, 1},
		"another Rego would": {"", "RegoPolicy", "", seen(observed("RegoPolicy default/pp")), 0, 0, 1},
		"refused already":    {"", "RegoPolicy", "", seen(func(s *recording.Seen) { s.Allowed = false; observed("RegoPolicy default/p")(s) }), 0, 0, 0},
		"the rules say so":   {"", "AuthorizationPolicy", header, seen(func(s *recording.Seen) { s.Headers["x-user"] = "mallory" }), 1, 0, 1},
		"the rules say no":   {"", "AuthorizationPolicy", header, seen(observed("AuthorizationPolicy default/p rule 0")), 0, 0, 1},
		"the Envoy said so":  {"", "AuthorizationPolicy", header, seen(func(s *recording.Seen) { s.AllHeaders = false; observed("AuthorizationPolicy default/p rule 0")(s) }), 1, 0, 1},
		"the Envoy said so of more": {"", "AuthorizationPolicy", header, seen(func(s *recording.Seen) {
			s.AllHeaders = false
			observed("AuthorizationPolicy default/o,default/p no rule allows")(s)
		}), 1, 0, 1},
		"refused without it": {enforcedDelete, "AuthorizationPolicy", header, seen(func(s *recording.Seen) { s.Method = "DELETE"; s.Headers["x-user"] = "mallory" }), 0, 0, 0},
		"nobody can tell":    {"", "AuthorizationPolicy", header, seen(func(s *recording.Seen) { s.AllHeaders = false }), 0, 1, 1},
	} {
		r, err := Promotion(t.Context(), New(readMesh(t, c.before), nil), New(readMesh(t, c.before+"---\n"+c.policies), nil), ref(c.kind), source(c.seen))
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Flips) != c.flips || len(r.Unknown) != c.unknown || r.Requests != c.requests {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestPromotionOfLists: entries that are in the files are asked, and others what Envoys
// said of them; a header that is not recorded nobody can tell.
func TestPromotionOfLists(t *testing.T) {
	list := func(spec string) string {
		return "apiVersion: policy.writ.mesh/v1alpha1\nkind: AccessList\nmetadata: {name: p}\nspec: {selector: {matchLabels: {app: shop}}, " + spec + "}\n"
	}
	observed := func(s *recording.Seen) { s.Observed = []string{"AccessList default/p rule 1"} }
	for name, c := range map[string]struct {
		spec           string
		change         func(*recording.Seen)
		flips, unknown int
	}{
		"its address is on it":       {"action: DENY, match: source.ip, entries: [10.0.0.1]", func(s *recording.Seen) { s.SourceAddress = "10.0.0.1" }, 1, 0},
		"its address is not":         {"action: DENY, match: source.ip, entries: [10.0.0.1]", func(s *recording.Seen) { s.SourceAddress = "10.0.0.2"; observed(s) }, 0, 0},
		"the client is not on it":    {"action: ALLOW, match: remote.ip, entries: [10.0.0.1]", func(s *recording.Seen) { s.SourceAddress, s.Remote, s.AllHeaders = "10.0.0.1", "10.9.9.9", false }, 1, 0},
		"the client is on it":        {"action: ALLOW, match: remote.ip, entries: [10.9.9.9]", func(s *recording.Seen) { s.SourceAddress, s.Remote, s.AllHeaders = "10.0.0.1", "10.9.9.9", false }, 0, 0},
		"an override refuses":        {"action: ALLOW, match: request.path, entries: [/], overrides: {deny: [/]}", func(*recording.Seen) {}, 1, 0},
		"a header is not recorded":   {"action: DENY, match: 'request.headers[x-user]', entries: [mallory]", func(s *recording.Seen) { s.AllHeaders = false }, 0, 1},
		"the Envoy knew the header":  {"action: DENY, match: 'request.headers[x-user]', entries: [mallory]", func(s *recording.Seen) { s.AllHeaders = false; observed(s) }, 1, 0},
		"from elsewhere":             {"action: ALLOW, match: source.ip, from: {url: 'https://lists.example/'}", observed, 1, 0},
		"from elsewhere, and passes": {"action: ALLOW, match: source.ip, from: {url: 'https://lists.example/'}", func(*recording.Seen) {}, 0, 0},
	} {
		before, after := readMesh(t, list(c.spec+", mode: observe")), readMesh(t, list(c.spec))
		r, err := Promotion(t.Context(), New(before, nil), New(after, nil), after.AccessLists[0].Ref, source(seen(c.change)))
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Flips) != c.flips || len(r.Unknown) != c.unknown || r.Requests != 1 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestEnforce: one value changes, and nothing else.
func TestEnforce(t *testing.T) {
	authorization := model.Ref{Kind: "AuthorizationPolicy", Namespace: "default", Name: "deny-delete", File: "f.yaml"}
	regoRef := model.Ref{Kind: "RegoPolicy", Namespace: "shop", Name: "p", File: "f.yaml"}
	for name, c := range map[string]struct {
		text, old, new string
		policy         model.Ref
	}{
		"a list":                 {"kind: AccessList\nmetadata: {name: l}\nspec:\n  mode: observe # x\n  action: DENY\n", "observe #", "enforce #", model.Ref{Kind: "AccessList", Namespace: "default", Name: "l", File: "f.yaml"}},
		"annotation":             {"# über\n" + denyDelete + "---\nkind: X\n", `"true"}`, `"false"}`, authorization},
		"annotation without":     {strings.Replace(denyDelete, `"true"`, "'1'", 1), `'1'}`, `"false"}`, authorization},
		"mode":                   {"kind: RegoPolicy\nmetadata: {name: p, namespace: other}\nspec: {mode: observe}\n---\nkind: RegoPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  mode: observe   # for now\n", "observe   #", "enforce   #", regoRef},
		"after other characters": {"kind: RegoPolicy\nmetadata: {name: p, namespace: shop}\nspec: {module: \"ü→\", mode: \"observe\"} # x\n", `"observe"`, "enforce", regoRef},
		"JSON":                   {`{"kind": "RegoPolicy", "metadata": {"name": "p", "namespace": "shop"}, "spec": {"mode": "observe"}}`, `"observe"`, "enforce", regoRef},
		"not there":              {"kind: RegoPolicy\nmetadata: {name: q, namespace: shop}\nspec: {mode: observe}\n", "", "", regoRef},
		"no mode":                {"kind: RegoPolicy\nmetadata: {name: p, namespace: shop}\nspec: {}\n", "", "", regoRef},
		"an alias":               {"x: &m observe\nkind: RegoPolicy\nmetadata: {name: p, namespace: shop}\nspec: {mode: *m}\n", "", "", regoRef},
		"escapes":                {"kind: RegoPolicy\nmetadata: {name: p, namespace: shop}\nspec: {mode: \"\\x6fbserve\"}\n", "", "", regoRef},
	} {
		got, err := Enforce([]byte(c.text), c.policy)
		switch want := strings.Replace(c.text, c.old, c.new, 1); {
		case c.old == "" && err == nil:
			t.Errorf("%s: it became %q", name, got)
		case c.old != "" && (err != nil || string(got) != want):
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

// TestSuggest: the policy allows what was seen, and nothing beside it.
func TestSuggest(t *testing.T) {
	m := readMesh(t, "")
	request := func(method, path string) *recording.Seen {
		return seen(func(s *recording.Seen) { s.Method, s.Path = method, path })
	}
	s, err := Suggest(m, "default/shop", source(request("GET", "/orders/17"), request("GET", "/orders/18"), request("POST", "/orders"),
		request("GET", "/files/*"), request("GET", "/odd/[1]/17"), request("P*", "/orders"),
		seen(func(s *recording.Seen) { s.Method, s.Allowed = "DELETE", false }),
		seen(func(s *recording.Seen) { s.From = "" }),
		seen(func(s *recording.Seen) { s.To = "spiffe://cluster.local/ns/default/sa/web" })))
	if err != nil {
		t.Fatal(err)
	}
	text := s.YAML()
	for _, want := range []string{"app: shop", `istio.io/dry-run: "true"`, "/orders/{*}", "cluster.local/ns/default/sa/web", "1 requests without an identity", "no policy can name"} {
		if !strings.Contains(text, want) {
			t.Errorf("the suggestion lacks %s", want)
		}
	}
	enforcing := New(readMesh(t, strings.Replace(text, `"true"`, `"false"`, 1)), nil)
	for want, list := range map[string][]*recording.Seen{
		allowed: {request("GET", "/orders/17"), request("GET", "/orders/99"), request("POST", "/orders"), request("GET", "/files/*")},
		refused: {
			request("GET", "/orders"), request("GET", "/files/a/b"), request("PUT", "/orders"), request("POST", "/orders/17"), request("DELETE", "/"), request("GET", "/orders/17/items"),
			seen(func(s *recording.Seen) { s.From, s.Path = "spiffe://cluster.local/ns/default/sa/shop", "/orders/17" }),
		},
	} {
		for _, r := range list {
			if v := enforcing.Decide(t.Context(), r); v.Outcome != want {
				t.Errorf("%s %s of %s: %s by %s, want %s\n%s", r.Method, r.Path, r.From, v.Outcome, v.By, want, text)
			}
		}
	}
	if _, err := Suggest(m, "default/web", source()); err == nil {
		t.Error("a policy from nothing")
	}
}
