package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/proctest"
)

// try is one request of an authorization case and whether it must pass. from is
// a replica, or "plain" for a client without a sidecar.
type try struct {
	pass    bool
	from    string
	method  string
	path    string
	headers []string
}

// rulesCase is one rule of an AuthorizationPolicy. $P in it is the prefix under
// which the case has its requests.
type rulesCase struct {
	name string
	rule string
	try  []try
}

const (
	pass   = true
	refuse = false
)

// allowCases follow https://istio.io/latest/docs/reference/config/security/authorization-policy/
// and .../conditions/, field by field.
func allowCases() []rulesCase {
	return []rulesCase{
		{
			"principals, exact", `{from: [{source: {principals: [cluster.local/ns/default/sa/a]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", nil}, {refuse, "b-1", "", "", nil}, {refuse, "c-1", "", "", nil}, {refuse, "plain", "", "", nil}},
		},
		{
			"principals, prefix", `{from: [{source: {principals: ["cluster.local/ns/default/*"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", nil}, {pass, "b-1", "", "", nil}, {refuse, "c-1", "", "", nil}},
		},
		{
			"principals, suffix", `{from: [{source: {principals: ["*/sa/c"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "c-1", "", "", nil}, {refuse, "a-1", "", "", nil}},
		},
		{
			"principals, any", `{from: [{source: {principals: ["*"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", nil}, {pass, "c-1", "", "", nil}, {refuse, "plain", "", "", nil}},
		},
		{
			"principals are not those of a header", `{from: [{source: {principals: [cluster.local/ns/default/sa/b]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{
				{refuse, "a-1", "", "", []string{"x-forwarded-client-cert: By=x;Hash=y;URI=spiffe://cluster.local/ns/default/sa/b"}},
				{refuse, "plain", "", "", []string{"x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/b"}},
			},
		},
		{
			"notPrincipals", `{from: [{source: {notPrincipals: [cluster.local/ns/default/sa/a]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {pass, "b-1", "", "", nil}, {pass, "plain", "", "", nil}},
		},
		{
			"principals and notPrincipals", `{from: [{source: {principals: ["*/ns/default/*", "cluster.local/ns/default/*"], notPrincipals: ["*/sa/a"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {pass, "b-1", "", "", nil}, {refuse, "c-1", "", "", nil}},
		},
		{
			"namespaces", `{from: [{source: {namespaces: [other]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "c-1", "", "", nil}, {refuse, "a-1", "", "", nil}, {refuse, "plain", "", "", nil}},
		},
		{
			"namespaces, prefix and suffix", `{from: [{source: {namespaces: ["oth*", "*ault"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "c-1", "", "", nil}, {pass, "a-1", "", "", nil}},
		},
		{
			"notNamespaces", `{from: [{source: {notNamespaces: [default]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "c-1", "", "", nil}, {refuse, "a-1", "", "", nil}, {pass, "plain", "", "", nil}},
		},
		{
			"serviceAccounts of the policy's namespace and of another", `{from: [{source: {serviceAccounts: [a, other/c]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", nil}, {pass, "c-1", "", "", nil}, {refuse, "b-1", "", "", nil}, {refuse, "plain", "", "", nil}},
		},
		{
			"notServiceAccounts", `{from: [{source: {notServiceAccounts: [a]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {pass, "b-1", "", "", nil}},
		},
		{
			"ipBlocks, an address", `{from: [{source: {ipBlocks: [$A]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{
				{pass, "a-1", "", "", nil},
				{refuse, "b-1", "", "", nil},
				{refuse, "plain", "", "", nil},
				{refuse, "b-1", "", "", []string{"x-forwarded-for: $A"}},
			},
		},
		{
			"ipBlocks, CIDR", `{from: [{source: {ipBlocks: ["127.0.0.0/8"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", nil}, {pass, "plain", "", "", nil}},
		},
		{
			"notIpBlocks", `{from: [{source: {notIpBlocks: ["$A/32"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {pass, "b-1", "", "", nil}},
		},
		{
			"remoteIpBlocks", `{from: [{source: {remoteIpBlocks: ["10.1.0.0/16"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{
				{pass, "a-1", "", "", []string{"x-forwarded-for: 10.1.2.3"}},
				{refuse, "a-1", "", "", nil},
				{refuse, "a-1", "", "", []string{"x-forwarded-for: 10.1.2.3, 10.2.2.3"}},
			},
		},
		{
			"notRemoteIpBlocks", `{from: [{source: {notRemoteIpBlocks: ["10.1.2.3"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", []string{"x-forwarded-for: 10.1.2.3"}}, {pass, "a-1", "", "", nil}},
		},
		{
			"fields of a source are and, sources are or", `{from: [{source: {principals: ["*/sa/a"], namespaces: [other]}}, {source: {principals: ["*/sa/b"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {pass, "b-1", "", "", nil}, {refuse, "c-1", "", "", nil}},
		},
		{
			"hosts, exact, with port and in any case", `{to: [{operation: {hosts: ["SRV:8000"], paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", nil}, {refuse, "plain", "", "", nil}},
		},
		{
			"hosts, exact without port", `{to: [{operation: {hosts: [srv], paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {pass, "plain", "", "", []string{"Host: srv"}}, {pass, "plain", "", "", []string{"Host: Srv"}}},
		},
		{
			"hosts, prefix and suffix", `{to: [{operation: {hosts: ["sr*", "*.example.com"], paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", nil}, {pass, "plain", "", "", []string{"Host: a.EXAMPLE.com"}}, {refuse, "plain", "", "", []string{"Host: example.com"}}},
		},
		{
			"hosts are those of the request target", `{to: [{operation: {hosts: ["srv:8000"], paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", []string{"Host: evil"}}},
		},
		{
			"notHosts", `{to: [{operation: {notHosts: ["srv:*"], paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {pass, "plain", "", "", []string{"Host: x"}}},
		},
		{
			"methods", `{to: [{operation: {methods: [GET, HEAD], paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "GET", "", nil}, {pass, "a-1", "HEAD", "", nil}, {refuse, "a-1", "DELETE", "", nil}},
		},
		{
			"methods, prefix", `{to: [{operation: {methods: ["P*"], paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "PATCH", "", nil}, {refuse, "a-1", "GET", "", nil}},
		},
		{
			"notMethods", `{to: [{operation: {notMethods: [DELETE], paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "GET", "", nil}, {refuse, "a-1", "DELETE", "", nil}},
		},
		{
			"paths, exact", `{to: [{operation: {paths: ["$Pinfo"]}}]}`,
			[]try{
				{pass, "a-1", "", "info", nil},
				{pass, "a-1", "", "info?a=b", nil},
				{refuse, "a-1", "", "info/", nil},
				{refuse, "a-1", "", "Info", nil},
				{refuse, "a-1", "", "info/x", nil},
				{refuse, "a-1", "", "info;x", nil},
				{pass, "a-1", "", "x/../info", nil},
				{pass, "a-1", "", "./info", nil},
			},
		},
		{
			"paths, prefix and notPaths", `{to: [{operation: {paths: ["$Pdata/*"], notPaths: ["$Pdata/secret*", "*.key"]}}]}`,
			[]try{
				{pass, "a-1", "", "data/x", nil},
				{refuse, "a-1", "", "data/secret", nil},
				{refuse, "a-1", "", "data/a.key", nil},
				{refuse, "a-1", "", "data", nil},
				{refuse, "a-1", "", "data/x/../secret", nil},
				{pass, "a-1", "", "data/a.key2", nil},
				{refuse, "a-1", "", `data\secret`, nil},
			},
		},
		{
			"path templates", `{to: [{operation: {paths: ["$P{*}/one", "$Pall/{**}", "$P{*}/mid/{**}"]}}]}`,
			[]try{
				{pass, "a-1", "", "x/one", nil},
				{refuse, "a-1", "", "x/y/one", nil},
				{refuse, "a-1", "", "one", nil},
				{pass, "a-1", "", "all/x/y", nil},
				{pass, "a-1", "", "x/mid/y/z", nil},
				{pass, "a-1", "", "x/one?q=1", nil},
				{refuse, "a-1", "", "x/two", nil},
				{refuse, "a-1", "", "x/one/", nil},
			},
		},
		{
			"ports", `{to: [{operation: {ports: ["8000"], paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", nil}, {refuse, "a-1@8001", "", "", nil}},
		},
		{
			"notPorts", `{to: [{operation: {notPorts: ["8000"], paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {pass, "a-1@8001", "", "", nil}},
		},
		{
			"operations are or", `{to: [{operation: {methods: [GET], paths: ["$Pg"]}}, {operation: {methods: [PUT], paths: ["$Pp"]}}]}`,
			[]try{{pass, "a-1", "GET", "g", nil}, {pass, "a-1", "PUT", "p", nil}, {refuse, "a-1", "PUT", "g", nil}, {refuse, "a-1", "GET", "p", nil}},
		},
		{
			"request.headers", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: "request.headers[X-Env]", values: [prod, "dev-*", "*-test"]}]}`,
			[]try{
				{pass, "a-1", "", "", []string{"x-env: prod"}},
				{pass, "a-1", "", "", []string{"x-env: dev-1"}},
				{pass, "a-1", "", "", []string{"x-env: a-test"}},
				{refuse, "a-1", "", "", []string{"x-env: Prod"}},
				{refuse, "a-1", "", "", nil},
			},
		},
		{
			"request.headers, any value", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: "request.headers[x-any]", values: ["*"]}]}`,
			[]try{{pass, "a-1", "", "", []string{"x-any: z"}}, {refuse, "a-1", "", "", nil}},
		},
		{
			"request.headers, notValues", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: "request.headers[x-no]", notValues: [bad, "ev*"]}]}`,
			[]try{{refuse, "a-1", "", "", []string{"x-no: bad"}}, {refuse, "a-1", "", "", []string{"x-no: evil"}}, {pass, "a-1", "", "", nil}, {pass, "a-1", "", "", []string{"x-no: good"}}},
		},
		{
			"values and notValues", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: "request.headers[x-b]", values: ["a*"], notValues: ["ab"]}]}`,
			[]try{{pass, "a-1", "", "", []string{"x-b: ac"}}, {refuse, "a-1", "", "", []string{"x-b: ab"}}, {refuse, "a-1", "", "", nil}},
		},
		{
			"conditions are and", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: "request.headers[x-1]", values: ["1"]}, {key: "source.namespace", values: [other]}]}`,
			[]try{{pass, "c-1", "", "", []string{"x-1: 1"}}, {refuse, "c-1", "", "", nil}, {refuse, "a-1", "", "", []string{"x-1: 1"}}},
		},
		{
			"source.ip", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: source.ip, values: ["$A"]}]}`,
			[]try{{pass, "a-1", "", "", nil}, {refuse, "b-1", "", "", nil}},
		},
		{
			"remote.ip", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: remote.ip, values: ["10.9.0.0/16"]}]}`,
			[]try{{pass, "a-1", "", "", []string{"x-forwarded-for: 10.9.1.1"}}, {refuse, "a-1", "", "", nil}},
		},
		{
			"source.namespace, notValues", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: source.namespace, notValues: [other]}]}`,
			[]try{{pass, "a-1", "", "", nil}, {refuse, "c-1", "", "", nil}},
		},
		{
			"source.principal", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: source.principal, values: ["cluster.local/ns/*", "*/sa/none"], notValues: ["*/b"]}]}`,
			[]try{{pass, "a-1", "", "", nil}, {refuse, "b-1", "", "", nil}, {refuse, "plain", "", "", nil}},
		},
		{
			"source.serviceAccount", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: source.serviceAccount, values: [default/b]}]}`,
			[]try{{pass, "b-1", "", "", nil}, {refuse, "a-1", "", "", nil}},
		},
		{"destination.ip", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: destination.ip, values: ["$SRV"]}]}`, []try{{pass, "a-1", "", "", nil}}},
		{"destination.ip, another", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: destination.ip, notValues: ["$SRV"]}]}`, []try{{refuse, "a-1", "", "", nil}}},
		{
			"destination.port", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: destination.port, values: ["8001"]}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {pass, "a-1@8001", "", "", nil}},
		},
		{
			"connection.sni", `{to: [{operation: {paths: ["$P*"]}}], when: [{key: connection.sni, values: ["*.srv.default.svc.cluster.local"]}]}`,
			[]try{{pass, "a-1", "", "", nil}, {refuse, "plain", "", "", nil}},
		},
		{
			"an unverified token makes no request principal", `{from: [{source: {requestPrincipals: ["*"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", []string{"Authorization: Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4Iiwic3ViIjoieSJ9."}}},
		},
	}
}

// denyCases are in front of a rule that allows everything under /d.
func denyCases() []rulesCase {
	return []rulesCase{
		{
			"exact path under every spelling", `{to: [{operation: {paths: ["$Padmin"]}}]}`,
			[]try{
				{refuse, "a-1", "", "admin", nil},
				{refuse, "a-1", "", "admin?x=y", nil},
				{refuse, "a-1", "", "./admin", nil},
				{refuse, "a-1", "", "x/../admin", nil},
				{refuse, "a-1", "", "%2e/admin", nil},
				{refuse, "a-1", "", "x/%2e%2e/admin", nil},
				{refuse, "plain", "", "admin", nil},
				// Not the same path, with the default normalization (BASE).
				{pass, "a-1", "", "admin/", nil},
				{pass, "a-1", "", "ADMIN", nil},
				{pass, "a-1", "", "/admin", nil},
				{pass, "a-1", "", "x%2fadmin", nil},
				{pass, "a-1", "", "admin;a=b", nil},
			},
		},
		{"method", `{to: [{operation: {methods: [POST], paths: ["$P*"]}}]}`, []try{{refuse, "a-1", "POST", "", nil}, {pass, "a-1", "GET", "", nil}}},
		{
			"all but one namespace", `{from: [{source: {notNamespaces: [default]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", nil}, {refuse, "c-1", "", "", nil}, {refuse, "plain", "", "", nil}},
		},
		{
			"without identity", `{from: [{source: {notPrincipals: ["*"]}}], to: [{operation: {paths: ["$P*"]}}]}`,
			[]try{{pass, "a-1", "", "", nil}, {refuse, "plain", "", "", nil}},
		},
		{
			"explicit deny of a header's value", `{to: [{operation: {methods: [GET], paths: ["$P*"]}}], when: [{key: "request.headers[x-token]", notValues: [admin]}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {refuse, "a-1", "", "", []string{"x-token: guest"}}, {pass, "a-1", "", "", []string{"x-token: admin"}}, {pass, "a-1", "PUT", "", nil}},
		},
		{
			"hosts with any port", `{to: [{operation: {hosts: ["srv", "srv:*"], paths: ["$P*"]}}]}`,
			[]try{{refuse, "a-1", "", "", nil}, {refuse, "plain", "", "", []string{"Host: SRV"}}, {pass, "plain", "", "", []string{"Host: other"}}},
		},
		{"path template", `{to: [{operation: {paths: ["$P{*}/edit"]}}]}`, []try{{refuse, "a-1", "", "x/edit", nil}, {pass, "a-1", "", "x/y/edit", nil}, {pass, "a-1", "", "x/view", nil}}},
	}
}

func TestIstioAuthorizationRules(t *testing.T) {
	t.Parallel()
	a, srv, two := newEcho(t, "a"), newEcho(t, "srv"), newEcho(t, "two")
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", a) + workload("b", "b", a) +
			workloadIn("other", "c", "app: c", fmt.Sprintf("http:8000:%d", a.port)) +
			workloadIn("default", "srv", "app: srv", fmt.Sprintf("http:8000:%d", srv.port), fmt.Sprintf("http-two:8001:%d", two.port)),
	}))
	fill := strings.NewReplacer("$A", m.addressOf("a-1"), "$SRV", m.addressOf("srv-1"))
	policy := func(action string, name string, rules []string) string {
		return fmt.Sprintf("---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %s}\nspec:\n  selector: {matchLabels: {app: srv}}\n  action: %s\n  rules:\n  - %s\n",
			name, action, strings.Join(rules, "\n  - "))
	}
	var allow, deny []string
	for i, tc := range allowCases() {
		allow = append(allow, fill.Replace(strings.ReplaceAll(tc.rule, "$P", fmt.Sprintf("/a%d/", i))))
	}
	for i, tc := range denyCases() {
		deny = append(deny, fill.Replace(strings.ReplaceAll(tc.rule, "$P", fmt.Sprintf("/d%d/", i))))
	}
	allow = append(allow, `{to: [{operation: {paths: ["/d*"]}}]}`)
	write(t, m.dir, "policy.yaml", policy("ALLOW", "allow", allow)+policy("DENY", "deny", deny))
	if out, code := m.writ("validate", m.dir); code != 0 {
		t.Fatal(out)
	}
	waitStatus(t, 403, func() answer { return m.rawFrom("a-1", "GET", "http://srv:8000/nothing") })
	run := func(t *testing.T, prefix string, tc rulesCase) {
		for _, r := range tc.try {
			from, port, ok := strings.Cut(r.from, "@")
			if !ok {
				port = "8000"
			}
			method := r.method
			if method == "" {
				method = "GET"
			}
			headers := make([]string, 0, len(r.headers))
			for _, h := range r.headers {
				headers = append(headers, fill.Replace(h))
			}
			var got answer
			switch from {
			case "plain":
				got = raw("", method, "http://"+m.addressOf("srv-1")+":"+port+prefix+r.path, headers...)
			case "c-1":
				got = m.rawFrom(from, method, "http://srv.default:"+port+prefix+r.path, headers...)
			default:
				got = m.rawFrom(from, method, "http://srv:"+port+prefix+r.path, headers...)
			}
			want := 403
			if r.pass {
				want = 200
			}
			if got.status != want || r.pass != (got.header.Get("x-writ-denied-by") == "") {
				t.Errorf("%s %s %s%s %q: got %s, want %d", r.from, method, prefix, r.path, headers, got, want)
			}
		}
	}
	for i, tc := range allowCases() {
		t.Run("ALLOW "+tc.name, func(t *testing.T) { run(t, fmt.Sprintf("/a%d/", i), tc) })
	}
	for i, tc := range denyCases() {
		t.Run("DENY "+tc.name, func(t *testing.T) { run(t, fmt.Sprintf("/d%d/", i), tc) })
	}
}

// TestIstioAuthorizationPolicies is about several policies together: actions in
// their order, scopes, dry run, TCP, gateways.
func TestIstioAuthorizationPolicies(t *testing.T) {
	t.Parallel()
	a, srv := newEcho(t, "a"), newEcho(t, "srv")
	port, tcp := proctest.Port(t), tcpApp(t, "echo")
	tcpPorts := []string{fmt.Sprintf("tcp:9000:%d", tcp), fmt.Sprintf("tcp-two:9001:%d", tcpApp(t, "echo"))}
	m := up(t, writeFiles(t, map[string]string{
		"mesh.yaml": "defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}\n",
		"workloads.yaml": workload("a", "a", a) + workload("b", "b", a) + workload("srv", "srv", srv, "tier: back") +
			workloadIn("default", "tcp", "app: tcp", tcpPorts...),
		"gateway.yaml": doorGateway(port, "istio: ingressgateway") + doorTo("srv"),
	}))
	// each step is one edit of the policies; its checks must come true soon.
	ask := func(from, path string, headers ...string) func() answer {
		return func() answer { return m.rawFrom(from, "GET", "http://srv:8000"+path, headers...) }
	}
	tunnel := func(from, port string) func() answer {
		return func() answer {
			if m.connect(from, "tcp:"+port) {
				return answer{status: 200}
			}
			return answer{status: 403}
		}
	}
	door := func(headers ...string) func() answer {
		return func() answer { return raw("", "GET", m.gateway("door")+"/", headers...) }
	}
	type check struct {
		want int
		ask  func() answer
	}
	const head = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
	onSrv := func(name, spec string) string {
		return head + "metadata: {name: " + name + "}\nspec: {selector: {matchLabels: {app: srv}}, " + spec + "}\n"
	}
	onTCP := func(spec string) string {
		return head + "metadata: {name: tcp}\nspec: {selector: {matchLabels: {app: tcp}}, " + spec + "}\n"
	}
	atDoor := func(spec string) string {
		return head + "metadata: {name: door, namespace: istio-system}\nspec: {selector: {matchLabels: {istio: ingressgateway}}, " + spec + "}\n"
	}
	for _, step := range []struct {
		name, policies string
		checks         []check
	}{
		{"no policy", "# none\n", []check{{200, ask("a-1", "/")}, {200, tunnel("a-1", "9000")}, {200, door()}}},
		{"allow nothing", head + "metadata: {name: nothing}\nspec: {}\n", []check{{403, ask("a-1", "/")}, {403, tunnel("a-1", "9000")}, {403, door()}}},
		{"deny all", onSrv("deny-all", "action: DENY, rules: [{}]"), []check{{403, ask("a-1", "/")}, {200, tunnel("a-1", "9000")}}},
		{"allow all", onSrv("allow-all", "rules: [{}]"), []check{{200, ask("a-1", "/")}, {200, tunnel("a-1", "9000")}}},
		{
			"allow nothing of the whole mesh, and one that allows", head + "metadata: {name: nothing, namespace: istio-system}\nspec: {}\n" +
				onSrv("some", `rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/a"]}}]}]`),
			[]check{{403, ask("b-1", "/")}, {200, ask("a-1", "/")}, {403, tunnel("a-1", "9000")}, {403, door()}},
		},
		{
			"deny wins over allow", onSrv("allow-a", `rules: [{from: [{source: {principals: ["*/sa/a"]}}]}]`) + onSrv("deny-x", `action: DENY, rules: [{to: [{operation: {paths: ["/x"]}}]}]`),
			[]check{{403, ask("a-1", "/x")}, {200, ask("a-1", "/y")}, {403, ask("b-1", "/y")}},
		},
		{
			"two ALLOW policies are or", onSrv("allow-a", `rules: [{from: [{source: {principals: ["*/sa/a"]}}]}]`) + onSrv("allow-p", `rules: [{to: [{operation: {paths: ["/p"]}}]}]`),
			[]check{{403, ask("b-1", "/q")}, {200, ask("b-1", "/p")}, {200, ask("a-1", "/q")}},
		},
		{
			"root namespace with a selector", head + "metadata: {name: back, namespace: istio-system}\nspec: {selector: {matchLabels: {tier: back}}, action: DENY, rules: [{to: [{operation: {paths: [/r]}}]}]}\n",
			[]check{{403, ask("a-1", "/r")}, {200, ask("a-1", "/")}, {200, tunnel("a-1", "9000")}},
		},
		{
			"root namespace, every workload", head + "metadata: {name: all, namespace: istio-system}\nspec: {action: DENY, rules: [{from: [{source: {principals: [\"*/sa/b\"]}}]}]}\n",
			[]check{{403, ask("b-1", "/")}, {200, ask("a-1", "/")}, {403, tunnel("b-1", "9000")}, {200, tunnel("a-1", "9000")}},
		},
		{
			"another namespace's policy is nothing here", strings.ReplaceAll(onSrv("elsewhere", "action: DENY, rules: [{}]"), "{name: elsewhere}", "{name: elsewhere, namespace: other}"),
			[]check{{200, ask("b-1", "/")}},
		},
		{
			"AUDIT refuses nothing", onSrv("audit", "action: AUDIT, rules: [{}]") + onSrv("mark", `action: DENY, rules: [{to: [{operation: {paths: ["/mark"]}}]}]`),
			[]check{{403, ask("a-1", "/mark")}, {200, ask("a-1", "/audited")}},
		},
		{
			"dry run of DENY", strings.Replace(onSrv("trial", `action: DENY, rules: [{to: [{operation: {paths: ["/trial"]}}]}]`), "{name: trial}", `{name: trial, annotations: {"istio.io/dry-run": "true"}}`, 1) +
				onSrv("mark", `action: DENY, rules: [{to: [{operation: {paths: ["/mark2"]}}]}]`),
			[]check{{403, ask("a-1", "/mark2")}, {200, ask("a-1", "/trial")}},
		},
		{
			"dry run of ALLOW", strings.Replace(onSrv("only-b", `rules: [{from: [{source: {principals: ["*/sa/b"]}}]}]`), "{name: only-b}", `{name: only-b, annotations: {"istio.io/dry-run": "true"}}`, 1) +
				onSrv("mark", `action: DENY, rules: [{to: [{operation: {paths: ["/mark3"]}}]}]`),
			[]check{{403, ask("a-1", "/mark3")}, {200, ask("a-1", "/dry-allow")}, {200, ask("b-1", "/dry-allow-b")}},
		},

		{"TCP: principals", onTCP(`rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/a"]}}]}]`), []check{{403, tunnel("b-1", "9000")}, {200, tunnel("a-1", "9000")}}},
		{"TCP: ports", onTCP(`rules: [{to: [{operation: {ports: ["9000"]}}]}]`), []check{{403, tunnel("a-1", "9001")}, {200, tunnel("a-1", "9000")}}},
		{"TCP: an ALLOW rule of HTTP is no rule", onTCP(`rules: [{to: [{operation: {methods: [GET], ports: ["9000"]}}]}]`), []check{{403, tunnel("a-1", "9000")}, {403, tunnel("a-1", "9001")}}},
		{"TCP: a DENY rule of HTTP alone denies everything", onTCP(`action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]`), []check{{403, tunnel("a-1", "9000")}, {403, tunnel("a-1", "9001")}}},
		{"TCP: a DENY rule of HTTP and port denies the port", onTCP(`action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ["9000"]}}]}]`), []check{{403, tunnel("a-1", "9000")}, {200, tunnel("a-1", "9001")}}},
		{"TCP: ipBlocks", onTCP(fmt.Sprintf(`action: DENY, rules: [{from: [{source: {ipBlocks: ["%s"]}}]}]`, m.addressOf("a-1"))), []check{{403, tunnel("a-1", "9000")}, {200, tunnel("b-1", "9001")}}},
		{
			"TCP: namespaces and source.principal", onTCP(`rules: [{from: [{source: {namespaces: [default]}}], when: [{key: source.principal, notValues: ["*/sa/b"]}]}]`),
			[]check{{403, tunnel("b-1", "9000")}, {200, tunnel("a-1", "9001")}},
		},

		{"gateway: ipBlocks is the peer", atDoor(`action: DENY, rules: [{from: [{source: {ipBlocks: ["127.0.0.1"]}}]}]`), []check{{403, door()}, {403, door("x-forwarded-for: 9.9.9.9")}}},
		{
			"gateway: remoteIpBlocks is the client behind the trusted proxy", atDoor(`rules: [{from: [{source: {remoteIpBlocks: ["1.2.3.0/24"]}}]}]`),
			[]check{{403, door("x-forwarded-for: 1.2.3.4, 9.9.9.9")}, {200, door("x-forwarded-for: 9.9.9.9, 1.2.3.4")}},
		},
		{
			"gateway: remote.ip, notValues", atDoor(`action: DENY, rules: [{when: [{key: remote.ip, notValues: ["1.2.3.4", "5.6.7.0/24"]}]}]`),
			[]check{{403, door("x-forwarded-for: 8.8.8.8")}, {200, door("x-forwarded-for: 1.2.3.4")}, {200, door("x-forwarded-for: 5.6.7.8")}},
		},
		{
			"gateway: hosts", atDoor(`rules: [{to: [{operation: {hosts: ["shop.example", "shop.example:*"]}}]}]`),
			[]check{{403, door("Host: x.shop.example")}, {200, door("Host: shop.example")}, {200, door(fmt.Sprintf("Host: SHOP.example:%d", port))}},
		},
		{"behind the gateway: its identity", onSrv("door", `rules: [{from: [{source: {namespaces: [istio-system]}}]}]`), []check{{403, ask("a-1", "/")}, {200, door()}}},
	} {
		t.Run(step.name, func(t *testing.T) {
			write(t, m.dir, "policies.yaml", step.policies)
			for _, c := range step.checks {
				waitStatus(t, c.want, c.ask)
			}
		})
	}
	proctest.Eventually(t, 5e9, func() error {
		log := m.accessLog("srv-1")
		for path, want := range map[string]string{
			"/trial": "AuthorizationPolicy default/trial rule 0", "/dry-allow\"": "denied", "/dry-allow-b": "AuthorizationPolicy default/only-b rule 0", "/audited": `"audit":true`,
		} {
			if !logged(log, path, want) {
				return fmt.Errorf("no line of the access log has %s and %q", path, want)
			}
		}
		return nil
	})
}

// logged says whether one line of a log has both texts.
func logged(log, one, other string) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, one) && strings.Contains(line, other) {
			return true
		}
	}
	return false
}
