package translate

import (
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

func TestRetryOn(t *testing.T) {
	for _, c := range []struct {
		in, conditions string
		codes          []uint32
	}{
		{"5xx", "5xx", nil},
		{"503, 504", "retriable-status-codes", []uint32{503, 504}},
		{"gateway-error,503,retriable-status-codes", "gateway-error,retriable-status-codes", []uint32{503}},
		{"999,connect-failure", "999,connect-failure", nil},
	} {
		conditions, codes := retryOn(c.in)
		if conditions != c.conditions || !slices.Equal(codes, c.codes) {
			t.Errorf("retryOn(%q) = %q, %v", c.in, conditions, codes)
		}
	}
}

func TestClaimPath(t *testing.T) {
	for in, want := range map[string]string{
		"@request.auth.claims.sub":          "sub",
		"@request.auth.claims.a.b":          "a|b",
		"@request.auth.claims[a.b][c]":      "a.b|c",
		"@Request.Auth.Claims[Group]":       "Group",
		"@request.auth.claims":              "",
		"@request.auth.claimsx":             "",
		"x-header":                          "",
		"@request.auth.claims[https://x/y]": "https://x/y",
	} {
		got, ok := claimPath(in)
		if ok != (want != "") || strings.Join(got, "|") != want {
			t.Errorf("claimPath(%q) = %v, %v", in, got, ok)
		}
	}
}

func TestGRPCCode(t *testing.T) {
	for in, want := range map[string]uint32{"UNAVAILABLE": 14, "14": 14, "OK": 0, "CANCELLED": 1} {
		if got, ok := grpcCode(in); !ok || got != want {
			t.Errorf("grpcCode(%q) = %d, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "nope", "17", "-1"} {
		if got, ok := grpcCode(in); ok {
			t.Errorf("grpcCode(%q) = %d", in, got)
		}
	}
}

func TestIntersection(t *testing.T) {
	for _, c := range []struct{ a, b, want []string }{
		{[]string{"*"}, []string{"a.b"}, []string{"a.b"}},
		{[]string{"*.b"}, []string{"a.b", "x.c"}, []string{"a.b"}},
		{[]string{"a.b"}, []string{"*"}, []string{"a.b"}},
		{[]string{"a.b", "c.b"}, []string{"*.b"}, []string{"a.b", "c.b"}},
		{[]string{"a.b"}, []string{"b.a"}, nil},
	} {
		if got := intersection(c.a, c.b); !slices.Equal(got, c.want) {
			t.Errorf("intersection(%v, %v) = %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

// TestTrafficPolicyInheritance: fields come from the rule, the subset and, whole,
// from the settings of the port.
func TestTrafficPolicyInheritance(t *testing.T) {
	b := newMesh(t).apply(`
kind: DestinationRule
metadata: {name: r}
spec:
  host: r
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool: {tcp: {maxConnections: 1}}
    portLevelSettings: [{port: {number: 81}, loadBalancer: {simple: ROUND_ROBIN}}]
  subsets:
  - {name: a, labels: {v: a}, trafficPolicy: {connectionPool: {tcp: {maxConnections: 2}}}}
  - {name: b, labels: {v: b}, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}}
`)
	dr := b.translator().index.destinationRules["default"].exact["r.default.svc.cluster.local"][0]
	type want struct {
		lb    networking.LoadBalancerSettings_SimpleLB
		conns int32
		tls   bool
	}
	for _, c := range []struct {
		port   uint32
		subset string
		want
	}{
		{80, "", want{networking.LoadBalancerSettings_RANDOM, 1, false}},
		{81, "", want{networking.LoadBalancerSettings_ROUND_ROBIN, 0, false}},
		{80, "a", want{networking.LoadBalancerSettings_RANDOM, 2, false}},
		{81, "a", want{networking.LoadBalancerSettings_ROUND_ROBIN, 2, false}},
		{80, "b", want{networking.LoadBalancerSettings_UNSPECIFIED, 0, true}},
	} {
		p := dr.trafficPolicy(c.port, c.subset)
		got := want{p.GetLoadBalancer().GetSimple(), p.GetConnectionPool().GetTcp().GetMaxConnections(), p.GetTls() != nil}
		if got != c.want {
			t.Errorf("port %d subset %q: %+v, want %+v", c.port, c.subset, got, c.want)
		}
	}
}

// TestDestinationRuleLookup: the client's namespace, the service's, the root's;
// longer hosts and selecting rules first; private rules stay at home.
func TestDestinationRuleLookup(t *testing.T) {
	b := newMesh(t)
	client := b.workload("client-1", "default", "c", map[string]string{"app": "client"})
	other := b.workload("other-1", "default", "c", map[string]string{"app": "other"})
	b.apply(`
kind: DestinationRule
metadata: {name: root, namespace: istio-system}
spec: {host: "*.svc.cluster.local"}
---
kind: DestinationRule
metadata: {name: owner, namespace: a}
spec: {host: owned}
---
kind: DestinationRule
metadata: {name: private, namespace: a}
spec: {host: secret, exportTo: ["."]}
---
kind: DestinationRule
metadata: {name: wildcard}
spec: {host: "*.b.svc.cluster.local"}
---
kind: DestinationRule
metadata: {name: exact}
spec: {host: x.b.svc.cluster.local}
---
kind: DestinationRule
metadata: {name: selecting}
spec: {host: x.b.svc.cluster.local, workloadSelector: {matchLabels: {app: client}}}
`)
	tr := b.translator()
	for _, c := range []struct {
		p                   *model.Proxy
		host, ns, wantOwner string
	}{
		{client, "owned.a.svc.cluster.local", "a", "owner"},
		{client, "secret.a.svc.cluster.local", "a", "root"},
		{client, "y.b.svc.cluster.local", "b", "wildcard"},
		{client, "x.b.svc.cluster.local", "b", "selecting"},
		{other, "x.b.svc.cluster.local", "b", "exact"},
		{client, "z.c.svc.cluster.local", "c", "root"},
		{client, "example.com", "c", ""},
	} {
		s, err := tr.scope(c.p)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if dr := s.destinationRule(&model.Service{Hostname: c.host, Meta: model.Meta{Ref: model.Ref{Namespace: c.ns}}}); dr != nil {
			got = dr.sources[0].Name
		}
		if got != c.wantOwner {
			t.Errorf("%s for %s: rule %q, want %q", c.p.Name, c.host, got, c.wantOwner)
		}
	}
}

func TestVirtualServiceLookup(t *testing.T) {
	b := newMesh(t)
	client := b.workload("client-1", "default", "c", nil)
	b.service("client", "default", client)
	b.apply(`
kind: VirtualService
metadata: {name: all}
spec: {hosts: ["*.default.svc.cluster.local"], http: [{directResponse: {status: 201}}]}
---
kind: VirtualService
metadata: {name: first}
spec: {hosts: [client], http: [{directResponse: {status: 202}}]}
---
kind: VirtualService
metadata: {name: second}
spec: {hosts: [client], http: [{directResponse: {status: 203}}]}
---
kind: VirtualService
metadata: {name: hidden, namespace: other}
spec: {hosts: [hidden.default.svc.cluster.local], exportTo: ["."], http: [{directResponse: {status: 204}}]}
---
kind: VirtualService
metadata: {name: gateway-only}
spec: {hosts: [gw.default.svc.cluster.local], gateways: [some], http: [{directResponse: {status: 205}}]}
`)
	s, err := b.translator().scope(client)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"client.default.svc.cluster.local": "first", "x.default.svc.cluster.local": "all",
		"hidden.default.svc.cluster.local": "all", "gw.default.svc.cluster.local": "all", "example.com": "",
	} {
		got := ""
		if vs := s.virtualServiceFor(host); vs != nil {
			got = vs.Name
		}
		if got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}

func TestMergeDelegate(t *testing.T) {
	uri := func(kind, v string) []*networking.HTTPMatchRequest {
		m := &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: v}}
		switch kind {
		case "exact":
			m.MatchType = &networking.StringMatch_Exact{Exact: v}
		case "regex":
			m.MatchType = &networking.StringMatch_Regex{Regex: v}
		}
		return []*networking.HTTPMatchRequest{{Uri: m}}
	}
	header := func(expression string) []*networking.HTTPMatchRequest {
		return []*networking.HTTPMatchRequest{{Headers: map[string]*networking.StringMatch{"x": {MatchType: &networking.StringMatch_Regex{Regex: expression}}}}}
	}
	from := func(app string) []*networking.HTTPMatchRequest {
		return []*networking.HTTPMatchRequest{{SourceLabels: map[string]string{"app": app}}}
	}
	at := func(gateways ...string) []*networking.HTTPMatchRequest {
		return []*networking.HTTPMatchRequest{{Gateways: gateways}}
	}
	for _, c := range []struct {
		name       string
		root, leaf []*networking.HTTPMatchRequest
		want       []*networking.HTTPMatchRequest
		impossible bool
	}{
		{"narrower", uri("prefix", "/a"), uri("exact", "/a/b"), uri("exact", "/a/b"), false},
		{"root only", uri("prefix", "/a"), nil, uri("prefix", "/a"), false},
		{"leaf only", nil, uri("prefix", "/a"), uri("prefix", "/a"), false},
		{"outside", uri("prefix", "/a"), uri("prefix", "/b"), nil, true},
		{"wider", uri("exact", "/a"), uri("prefix", "/a"), nil, true},
		{"one of two outside", uri("prefix", "/a"), append(uri("exact", "/a/b"), uri("exact", "/b")...), nil, true},
		{"each in one of two", append(uri("prefix", "/a"), uri("prefix", "/b")...), append(uri("exact", "/b"), uri("exact", "/a")...), append(uri("exact", "/b"), uri("exact", "/a")...), false},
		{"nothing beside an expression", uri("regex", "/a"), uri("regex", "/a"), nil, true},
		{"an expression below a prefix", uri("prefix", "/a"), uri("regex", "/a.*"), nil, true},
		{"an expression of something else", header("v.*"), uri("exact", "/a"), []*networking.HTTPMatchRequest{{Uri: uri("exact", "/a")[0].GetUri(), Headers: header("v.*")[0].GetHeaders()}}, false},
		{"other clients", from("a"), from("b"), nil, true},
		{"the same clients", from("a"), from("a"), from("a"), false},
		{"other gateways", at("default/a"), at("default/b"), nil, true},
		{"one of the gateways", at("default/a", "default/b"), at("default/b"), at("default/b"), false},
	} {
		got := mergeDelegate(&networking.HTTPRoute{Match: c.root}, &networking.HTTPRoute{Match: c.leaf})
		if (got == nil) != c.impossible {
			t.Errorf("%s: %v", c.name, got)
			continue
		}
		if !slices.EqualFunc(got.GetMatch(), c.want, func(a, b *networking.HTTPMatchRequest) bool { return proto.Equal(a, b) }) {
			t.Errorf("%s: %v", c.name, got.GetMatch())
		}
	}
}

// TestSharedAndDeterministic: proxies alike share messages, and every run gives
// the same bytes.
func TestSharedAndDeterministic(t *testing.T) {
	build := func() (*Translator, *model.Proxy, *model.Proxy) {
		b := newMesh(t)
		one := b.workload("web-1", "default", "web", map[string]string{"app": "web", "pod": "1"}, "http:9000:19000")
		two := b.workload("web-2", "default", "web", map[string]string{"app": "web", "pod": "1"}, "http:9000:19000")
		b.service("web", "default", one, two)
		v1 := b.workload("reviews-1", "default", "reviews", map[string]string{"app": "reviews", "version": "v1"}, "http:9080")
		b.service("reviews", "default", v1)
		b.apply(rules)
		return b.translator(), one, two
	}
	tr, one, two := build()
	a, err := tr.Proxy(one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := tr.Proxy(two)
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2][]Resource{{a.Clusters, b.Clusters}, {a.Endpoints, b.Endpoints}, {a.Routes, b.Routes}} {
		for i := range pair[0] {
			if pair[0][i].Message != pair[1][i].Message {
				t.Errorf("%s is not shared", pair[0][i].Name)
			}
		}
	}
	tr2, again, _ := build()
	c, err := tr2.Proxy(again)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(bytesOf(t, a), bytesOf(t, c)); d != "" {
		t.Errorf("a second run differs: %s", d)
	}
}

func bytesOf(t *testing.T, s *Snapshot) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, list := range [][]Resource{s.Clusters, s.Endpoints, s.Listeners, s.Routes, s.Extensions} {
		if !slices.IsSortedFunc(list, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) }) {
			t.Error("resources are not sorted by name")
		}
		for _, r := range list {
			raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Message)
			if err != nil {
				t.Fatal(err)
			}
			out[string(r.Message.ProtoReflect().Descriptor().Name())+" "+r.Name] = string(raw)
		}
	}
	return out
}

// TestSidecarScope: what a Sidecar does not import is neither cluster nor host,
// but what a rule leads to is a cluster.
func TestSidecarScope(t *testing.T) {
	b, client, _ := goldenMesh(t)
	b.apply(`
kind: Sidecar
metadata: {name: default}
spec: {egress: [{hosts: ["./reviews.default.svc.cluster.local"], port: {number: 9080, protocol: HTTP, name: http}}]}
`)
	s := b.snapshot(client)
	var names []string
	for _, c := range s.Clusters {
		names = append(names, c.Name)
	}
	want := []string{"PassthroughCluster", "inbound|9000||127.0.0.1:19000", "outbound|9080||reviews.default.svc.cluster.local"}
	if !slices.Equal(names, want) {
		t.Errorf("clusters %v, want %v", names, want)
	}
	for _, r := range s.Routes {
		if r.Name != explicitRoutes {
			continue
		}
		for _, vh := range r.Message.(*routev3.RouteConfiguration).GetVirtualHosts() {
			if strings.Contains(vh.GetName(), "ratings") || strings.HasSuffix(vh.GetName(), ":9090") {
				t.Errorf("virtual host %s is not imported", vh.GetName())
			}
		}
	}
}

// TestSidecarHosts: which hosts and ports of services a Sidecar's egress takes in.
func TestSidecarHosts(t *testing.T) {
	for _, c := range []struct{ egress, want string }{
		{`[{hosts: ["*/*"]}]`, "far/a:80 far/b:80 near/a:80 near/a:90 near/b:80 root/a:80"},
		{`[{hosts: ["./*", "root/*"]}]`, "near/a:80 near/a:90 near/b:80 root/a:80"},
		{`[{hosts: ["~/*"]}]`, ""},
		// What begins with ~ is taken out again, whatever else takes it in.
		{`[{hosts: ["~far/*", "*/*"]}]`, "near/a:80 near/a:90 near/b:80 root/a:80"},
		{`[{hosts: ["*/*", "~./a.near.svc.cluster.local"]}]`, "far/a:80 far/b:80 near/b:80 root/a:80"},
		{`[{hosts: ["*/*", "~/*.near.svc.cluster.local", "~*/b.far.svc.cluster.local"]}]`, "far/a:80 root/a:80"},
		{`[{hosts: ["far/*", "~near/*", "~/a.far.svc.cluster.local"]}]`, "far/b:80"},
		// A port with a listener of its own has the hosts of that listener alone.
		{`[{port: {number: 80, protocol: HTTP, name: http}, hosts: ["near/*"]}, {hosts: ["root/*", "./a.near.svc.cluster.local"]}]`, "near/a:80 near/a:90 near/b:80"},
		{`[{port: {number: 90, protocol: HTTP, name: http}, hosts: ["./*"]}]`, "near/a:90"},
		{`[{port: {number: 3128, protocol: HTTP_PROXY, name: proxy}, hosts: ["far/*"]}]`, "far/a:80 far/b:80"},
	} {
		b := newMesh(t)
		client := b.workload("web-1", "near", "web", nil)
		for _, name := range []string{"near/a", "near/b", "far/a", "far/b", "root/a"} {
			namespace, name, _ := strings.Cut(name, "/")
			svc := &model.Service{
				Meta: model.Meta{Ref: model.Ref{Kind: "Service", Namespace: namespace, Name: name}}, Hostname: name + "." + namespace + ".svc.cluster.local",
				Ports: []model.ServicePort{{Name: "http", Protocol: model.HTTP, Port: 80}},
			}
			if namespace+name == "neara" {
				svc.Ports = append(svc.Ports, model.ServicePort{Name: "http-alt", Protocol: model.HTTP, Port: 90})
			}
			b.addService(svc)
		}
		b.apply("kind: Sidecar\nmetadata: {name: default, namespace: near}\nspec: {egress: " + c.egress + "}\n")
		var got []string
		for _, cluster := range b.snapshot(client).Clusters {
			if parts := strings.Split(cluster.Name, "|"); parts[0] == "outbound" {
				labels := strings.Split(parts[3], ".")
				got = append(got, labels[1]+"/"+labels[0]+":"+parts[1])
			}
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %s, want %s", c.egress, s, c.want)
		}
	}
}

// TestSidecarRoutes: routes of a namespace that the Sidecar does not take in do not hold,
// even for a service that it does.
func TestSidecarRoutes(t *testing.T) {
	for hosts, want := range map[string]string{
		`["*/*"]`: "far", `["near/*"]`: "default", `["near/*", "far/a.near.svc.cluster.local"]`: "far", `["*/*", "~far/*"]`: "default",
	} {
		b := newMesh(t)
		client := b.workload("web-1", "near", "web", nil, "http:80")
		b.service("a", "near", client)
		b.apply("kind: Sidecar\nmetadata: {name: default, namespace: near}\nspec: {egress: [{hosts: " + hosts + "}]}\n---\n" +
			"kind: VirtualService\nmetadata: {name: a, namespace: far}\nspec: {hosts: [a.near.svc.cluster.local], http: [{name: far, directResponse: {status: 418}}]}\n")
		for _, vh := range routesOf(t, b.snapshot(client), explicitRoutes).GetVirtualHosts() {
			if vh.GetName() == "a.near.svc.cluster.local:80" && vh.GetRoutes()[len(vh.GetRoutes())-1].GetName() != want {
				t.Errorf("%s: %v, want %s", hosts, vh.GetRoutes(), want)
			}
		}
	}
}

// TestSourcesAreBlamed: a broken rule must be found by the resource it breaks.
func TestSourcesAreBlamed(t *testing.T) {
	b, client, gateway := goldenMesh(t)
	text, want := rules, "VirtualService default/reviews"
	b.apply(text)
	for _, r := range b.snapshot(client).Routes {
		if r.Name == explicitRoutes && !slices.ContainsFunc(r.Sources, func(ref model.Ref) bool { return ref.ID() == want }) {
			t.Errorf("sources %v do not name %s", r.Sources, want)
		}
	}
	if got := b.snapshot(gateway); len(got.Listeners) != 0 {
		t.Errorf("a gateway without Gateway object listens: %v", got.Listeners)
	}
}

// TestAddressesAsHosts: an address is a name of its service however it is written, a
// range is not.
func TestAddressesAsHosts(t *testing.T) {
	s := &scope{t: &Translator{mesh: &model.Mesh{DomainSuffix: "cluster.local"}}}
	got := s.hostForms(&model.Service{Hostname: "a.example", Addresses: []string{
		"10.1.2.3", "10.1.2.4/32", "2001:db8::1", "2001:db8::2/128", "10.1.0.0/16", "2001:db8::/32",
	}})
	if want := []string{"a.example", "10.1.2.3", "10.1.2.4", "[2001:db8::1]", "[2001:db8::2]"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
