package explain

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	setcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	exprv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	"google.golang.org/protobuf/proto"
	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/pilot/security/eval"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

var (
	quotaSeed    = flag.Uint64("quota-seed", 0, "repeat a run of TestEffectiveIsWhatIsEnforced; 0 is a new one")
	quotaConfigs = flag.Int("quota-configs", 200, "how many random meshes TestEffectiveIsWhatIsEnforced tries")
)

// quotaMesh is a mesh of one service with these policies.
func quotaMesh(policies ...*model.QuotaPolicy) *model.Mesh {
	p := &model.Proxy{
		ID: "shop", Type: model.SidecarProxy, Name: "shop-1", Namespace: "app", ServiceAccount: "shop", Labels: map[string]string{"app": "shop"},
		Ports: []model.WorkloadPort{{Name: "http", Protocol: model.HTTP, Port: 9080, App: 9080}},
	}
	return &model.Mesh{
		Config: &meshv1.MeshConfig{}, TrustDomain: "td", TrustDomainAliases: []string{"old"}, RootNamespace: "root", DomainSuffix: "cluster.local",
		Deciders: model.Deciders{RateLimit: "unix:///r"}, Proxies: []*model.Proxy{p}, QuotaPolicies: policies,
		Services: []*model.Service{{
			Hostname: "shop.app.svc.cluster.local",
			Ports:    []model.ServicePort{{Port: 80, Protocol: model.HTTP}}, Endpoints: []*model.Endpoint{{Proxy: p, Ports: map[uint32]uint32{80: 9080}}},
		}},
	}
}

func (g generator) quotaPolicy(i int) *model.QuotaPolicy {
	p := &model.QuotaPolicy{
		Meta:       model.Meta{Ref: model.Ref{Kind: "QuotaPolicy", Namespace: []string{"root", "app", "app"}[g.IntN(3)], Name: fmt.Sprintf("q%d", i), File: "a.yaml", Line: i}},
		Upper:      []string{model.QuotaInherit, model.QuotaOverride, model.QuotaExempt}[g.IntN(3)],
		FailClosed: g.IntN(4) == 0, Observe: g.IntN(8) == 0,
	}
	if p.Namespace == "root" {
		p.Lower = []string{model.QuotaInherit, model.QuotaOverride, model.QuotaExempt}[g.IntN(3)]
	}
	if g.IntN(2) == 0 {
		p.Selector = map[string]string{"app": []string{"shop", "shop", "other"}[g.IntN(3)]}
	}
	for range g.IntN(3) {
		m := model.QuotaMatch{}
		for {
			g.either(4, &m.Principals, new([]string), "td/ns/app/sa/x", "cluster.local/ns/app/sa/y", "*/sa/x", "td/ns/app/*", "*")
			g.either(5, &m.Namespaces, new([]string), "app", "ap", "other")
			g.either(5, &m.Hosts, new([]string), "shop", "*.example", "shop*", "*", "50%)%.example")
			g.either(5, &m.Methods, new([]string), "GET", "POST")
			g.either(4, &m.Paths, new([]string), "/a", "/a/*", "*.html", "/{*}/b", "/a/{**}", "*", "/it's")
			if g.IntN(8) == 0 { // there are no tokens, which TestQuotaClaimsLive of package security has
				m.Claims = []model.QuotaClaim{{Name: "a][b", Values: []string{"it's"}}}
			}
			if m.Callers() || len(m.Hosts)+len(m.Methods)+len(m.Paths) > 0 {
				break
			}
		}
		p.Match = append(p.Match, m)
	}
	for range g.IntN(3) {
		p.Limits = append(p.Limits, g.quotaLimit())
	}
	if len(p.Limits) == 0 && p.Upper != model.QuotaExempt {
		p.Limits = append(p.Limits, g.quotaLimit())
	}
	return p
}

func (g generator) quotaLimit() model.QuotaLimit {
	l := model.QuotaLimit{Requests: 5, Every: time.Minute, Name: []string{"", "", "a", "b"}[g.IntN(4)]}
	dims := []model.Dimension{
		{Text: "source.principal", Kind: "source.principal"},
		{Text: "50%&/a=b", Kind: "constant", Arg: "50%&/a=b"},
		{Text: "source.namespace", Kind: "source.namespace"},
		{Text: "request.path[/{*}/50%=/{**}]", Kind: "request.path", Arg: "/{*}/50%=/{**}"},
		{Text: "request.path", Kind: "request.path"},
		{Text: "request.path[/{id}/{b_2}]", Kind: "request.path", Arg: "/{id}/{b_2}"},
		{Text: "request.method", Kind: "request.method"},
		{Text: "request.headers[X-Who]", Kind: "request.headers", Arg: "X-Who"},
		{Text: "destination.service", Kind: "destination.service"},
	}
	switch g.IntN(5) {
	case 0:
		l.Mode, dims = configpb.QuotaAssigned, dims[:4]
	case 1:
		l.Algorithm = configpb.QuotaConcurrency
	case 2:
		l.Cost = &model.QuotaCost{From: model.CostResponseBytes, Reserve: uint32(g.IntN(2))}
	}
	for _, d := range dims {
		if g.IntN(3) == 0 {
			l.Per = append(l.Per, d)
		}
	}
	return l
}

func (g generator) quotaQuestion() Question {
	pick := func(from ...string) string { return from[g.IntN(len(from))] }
	q := Question{
		From: pick(Outside, "app/x", "app/y", "spiffe://old/ns/app/sa/x", "other/z"), To: "shop.app.svc.cluster.local", Port: 80,
		Host: pick("shop", "SHOP:80", "shop.", "a.example", "A.Example.:8", "none"), Method: pick("GET", "POST", "PUT"),
		Path: pick("/", "/a", "/a/", "/a/b", "/a/b?x", "/x/b", "/b.html", "/it's", "/a;x/b%2Fc", "/a;x/b;y", "/x/50%=/y/z", "/a//b"),
	}
	if who := pick("", "alice", "a=b&c"); who != "" {
		q.Headers = map[string]string{"x-who": who}
	}
	return q
}

// TestEffectiveIsWhatIsEnforced: what `writ limits effective` tells of random requests
// in random meshes is what the Envoy's configuration asks ratelimit for, and what the
// documentation says of layers.
func TestEffectiveIsWhatIsEnforced(t *testing.T) {
	seed := *quotaSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) //nolint:gosec // any number
	}
	t.Logf("-quota-seed %d", seed)
	g := generator{rand.New(rand.NewPCG(seed, 1))} //nolint:gosec // a test
	for range *quotaConfigs {
		var policies []*model.QuotaPolicy
		for i := range 1 + g.IntN(6) {
			policies = append(policies, g.quotaPolicy(i))
		}
		m := quotaMesh(policies...)
		c, err := security.New(m)
		if err != nil {
			t.Fatal(err)
		}
		http, err := c.HTTP(m.Proxies[0], m.Proxies[0].Ports[0])
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			q := g.quotaQuestion()
			told, err := EffectiveLimits(m, q, Deciders{})
			if err != nil {
				t.Fatal(err)
			}
			var effective, over []string
			for _, l := range told.Targets[0].Limits {
				if !l.Counts {
					continue
				}
				effective = append(effective, l.Counter)
				if limit := policyNamed(m, l.Policy).Limits[l.Limit]; limit.Cost != nil || limit.Algorithm == configpb.QuotaConcurrency {
					over = append(over, l.Counter)
				}
			}
			enforced, toldOver := enforcedCounters(t, http, m, q)
			documented := documentedCounters(m, q, told)
			for what, want := range map[string][2][]string{"enforced": {effective, enforced}, "told when the request is over": {over, toldOver}, "documented": {effective, documented}} {
				if slices.Sort(want[0]); !slices.Equal(want[0], want[1]) {
					t.Fatalf("%+v\n%s\neffective %q\n%s %q", q, describe(policies), want[0], what, want[1])
				}
			}
		}
	}
}

func policyNamed(m *model.Mesh, id string) *model.QuotaPolicy {
	return m.QuotaPolicies[slices.IndexFunc(m.QuotaPolicies, func(p *model.QuotaPolicy) bool { return p.ID() == id })]
}

func describe(policies []*model.QuotaPolicy) string {
	var out []string
	for _, p := range policies {
		out = append(out, fmt.Sprintf("%s selector %v match %+v upper %q lower %q observe %v limits %+v", p.ID(), p.Selector, p.Match, p.Upper, p.Lower, p.Observe, p.Limits))
	}
	return strings.Join(out, "\n")
}

// documentedCounters follows docs/quotas.md to the letter. The names of counters are
// taken from what is told.
func documentedCounters(m *model.Mesh, q Question, told *Limits) []string {
	r := &eval.Request{Principal: told.From, Method: q.Method, Host: q.Host, Headers: q.Headers}
	r.Path, _, _ = strings.Cut(q.Path, "?")
	speaks := func(p *model.QuotaPolicy) bool {
		return model.SelectorMatches(p.Selector, m.Proxies[0].Labels) && eval.Speaks(domainsOf(m), p, r)
	}
	rank := func(p *model.QuotaPolicy) int {
		n := 0
		for _, match := range p.Match {
			if len(match.Principals)+len(match.Namespaces)+len(match.Claims) > 0 {
				n = 3
			}
		}
		if n == 0 && len(p.Selector)+len(p.Match) > 0 {
			n = 2
		}
		if n == 0 && p.Namespace != "root" {
			n = 1
		}
		n *= 2
		if p.Namespace != "root" {
			n++
		}
		return n
	}
	allows := func(upper, lower *model.QuotaPolicy, what string) bool {
		return lower.Namespace == "root" || upper.Namespace != "root" || upper.Lower == model.QuotaExempt || upper.Lower == what
	}
	does := func(lower, upper *model.QuotaPolicy, what string) bool {
		return !lower.Observe && lower.Upper == what && rank(lower) > rank(upper) && speaks(lower) && allows(upper, lower, what)
	}
	exempt := func(of *model.QuotaPolicy) bool {
		return slices.ContainsFunc(m.QuotaPolicies, func(p *model.QuotaPolicy) bool { return does(p, of, model.QuotaExempt) })
	}
	var out []string
	for _, p := range m.QuotaPolicies {
		for i, l := range p.Limits {
			counts := speaks(p) && !exempt(p)
			for _, other := range m.QuotaPolicies {
				if does(other, p, model.QuotaOverride) && slices.ContainsFunc(other.Limits, func(o model.QuotaLimit) bool { return o.Key() == l.Key() }) && !exempt(other) {
					counts = false
				}
			}
			if counts {
				k := slices.IndexFunc(told.Targets[0].Limits, func(e EffectiveLimit) bool { return e.Policy == p.ID() && e.Limit == i })
				out = append(out, told.Targets[0].Limits[k].Counter)
			}
		}
	}
	slices.Sort(out)
	return out
}

// enforcedCounters does what the Envoy does: it gives the counters of the limits that
// are asked for before the request, or kept by the proxy, and of those that are told
// of when it is over.
func enforcedCounters(t *testing.T, http *security.HTTP, m *model.Mesh, q Question) (asked, over []string) {
	t.Helper()
	from, err := findCaller(m, q.From)
	if err != nil {
		t.Fatal(err)
	}
	path, _, _ := strings.Cut(q.Path, "?")
	headers, state := map[string]any{}, map[string]any{"writ.quota.hold": "name"}
	for k, v := range q.Headers {
		headers[k] = v
	}
	env := map[string]any{
		"request":      map[string]any{"method": q.Method, "host": q.Host, "url_path": path, "headers": headers},
		"connection":   map[string]any{"mtls": false},
		"filter_state": state, "re": "re", "metadata": map[string]any{"filter_metadata": map[string]any{}},
	}
	if from.principal != "" {
		env["connection"] = map[string]any{"mtls": true, "uri_san_peer_certificate": "spiffe://" + from.principal}
	}
	config := func(name string, into proto.Message) {
		if c := http.PerFilterConfig[name]; c != nil {
			if err := c.UnmarshalTo(into); err != nil {
				t.Fatal(err)
			}
		}
	}
	names, counters, done := &setfilterstatev3.Config{}, &setfilterstatev3.Config{}, &ratelimitv3.RateLimitPerRoute{}
	config("writ.quota.hold", names)
	config("writ.quota.counters", counters)
	config("writ.quota.done", done)
	for _, v := range slices.Concat(names.GetOnRequestHeaders(), counters.GetOnRequestHeaders()) {
		text := formatOf(t, v, env)
		if text == "" && v.GetSkipIfEmpty() {
			continue
		}
		state[v.GetObjectKey()] = text
		if strings.HasPrefix(v.GetObjectKey(), "writ.quota.assigned.") {
			asked = append(asked, text)
		}
	}
	asked = append(asked, descriptors(t, http.RateLimits, env)...)
	over = descriptors(t, done.GetRateLimits(), env)
	slices.Sort(asked)
	slices.Sort(over)
	return asked, over
}

// formatOf is what a format comes to.
func formatOf(t *testing.T, v *setcommonv3.FilterStateValue, env map[string]any) string {
	t.Helper()
	rest, out := v.GetFormatString().GetTextFormatSource().GetInlineString(), ""
	for rest != "" {
		switch {
		case strings.HasPrefix(rest, "%%"):
			out, rest = out+"%", rest[2:]
		case rest == "%UNIQUE_ID%":
			return "name"
		case strings.HasPrefix(rest, "%CEL("):
			text, more, ok := strings.Cut(rest[len("%CEL("):], ")%")
			if !ok {
				t.Fatalf("format %q has no end", rest)
			}
			value, err := evalCEL(text, env)
			if errors.Is(err, errCEL) && !errors.Is(err, errSyntax) {
				value, err = "", nil
			}
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			out, rest = out+value.(string), more //nolint:forcetypeassert // a test panics
		default:
			out, rest = out+rest[:1], rest[1:]
		}
	}
	return out
}

// descriptors are what is sent for these limits, as the names of counters.
func descriptors(t *testing.T, limits []*routev3.RateLimit, env map[string]any) []string {
	t.Helper()
	var out []string
next:
	for _, limit := range limits {
		name, separator := "", "?"
		for _, a := range limit.GetActions() {
			key, value := a.GetGenericKey().GetDescriptorKey(), a.GetGenericKey().GetDescriptorValue()
			if e := a.GetExtension(); e != nil {
				d := &exprv3.Descriptor{}
				if err := e.GetTypedConfig().UnmarshalTo(d); err != nil {
					t.Fatal(err)
				}
				v, err := evalCEL(d.GetText(), env)
				if errors.Is(err, errCEL) {
					continue next
				}
				if err != nil {
					t.Fatalf("%s: %v", d.GetText(), err)
				}
				key, value = d.GetDescriptorKey(), v.(string) //nolint:forcetypeassert // a test panics
			}
			switch key {
			case configpb.QuotaPolicyKey:
				name = configpb.PolicyName(value)
			case configpb.QuotaLimitKey:
				name += "/" + value
			case configpb.QuotaHoldKey, configpb.QuotaDoneKey:
			default:
				name += separator + counterText(key) + "=" + counterText(value)
				separator = "&"
			}
		}
		out = append(out, name)
	}
	return out
}

// TestNobodyExemptsHimself: what somebody who may write one namespace's policies says of
// the mesh's limits counts only as far as these allow it.
func TestNobodyExemptsHimself(t *testing.T) {
	limits := []model.QuotaLimit{{Requests: 5, Every: time.Minute}}
	policy := func(namespace, upper, lower string, limits []model.QuotaLimit, match ...model.QuotaMatch) *model.QuotaPolicy {
		return &model.QuotaPolicy{Meta: model.Meta{Ref: model.Ref{Kind: "QuotaPolicy", Namespace: namespace, Name: namespace + upper}}, Upper: upper, Lower: lower, Limits: limits, Match: match}
	}
	caller := model.QuotaMatch{Principals: []string{"td/ns/app/sa/x"}}
	for _, c := range []struct {
		name     string
		policies []*model.QuotaPolicy
		want     []string // the counters
		ignored  int
	}{
		{"closed by default: exempt", []*model.QuotaPolicy{policy("root", "", "", limits), policy("app", model.QuotaExempt, "", nil)}, []string{"root/root/0"}, 1},
		{"closed by default: a caller", []*model.QuotaPolicy{policy("root", "", "", limits), policy("app", model.QuotaExempt, "", nil, caller)}, []string{"root/root/0"}, 1},
		{"closed by default: override", []*model.QuotaPolicy{policy("root", "", "", limits), policy("app", model.QuotaOverride, "", limits)}, []string{"app/appoverride/0", "root/root/0"}, 1},
		{"who may override may not exempt", []*model.QuotaPolicy{policy("root", "", model.QuotaOverride, limits), policy("app", model.QuotaExempt, "", nil)}, []string{"root/root/0"}, 1},
		{
			"nor in two steps",
			[]*model.QuotaPolicy{policy("root", "", model.QuotaOverride, limits), policy("app", model.QuotaOverride, "", limits), policy("app", model.QuotaExempt, "", nil, caller)},
			[]string{"root/root/0"},
			1,
		},
		{"allowed: override", []*model.QuotaPolicy{policy("root", "", model.QuotaOverride, limits), policy("app", model.QuotaOverride, "", limits)}, []string{"app/appoverride/0"}, 0},
		{"allowed: exempt", []*model.QuotaPolicy{policy("root", "", model.QuotaExempt, limits), policy("app", model.QuotaExempt, "", nil)}, nil, 0},
		{"its own layer", []*model.QuotaPolicy{policy("app", "", "", limits), policy("app", model.QuotaExempt, "", nil)}, []string{"app/app/0"}, 0},
		{"the mesh's own exemption", []*model.QuotaPolicy{policy("root", "", "", limits), policy("app", "", "", limits), policy("root", model.QuotaExempt, "", nil, caller)}, nil, 0},
		{"a policy that claims to be of the mesh", []*model.QuotaPolicy{policy("root", "", "", limits), policy("app", model.QuotaExempt, model.QuotaExempt, nil)}, []string{"root/root/0"}, 1},
	} {
		m := quotaMesh(c.policies...)
		got, err := EffectiveLimits(m, Question{From: "app/x", To: "shop.app.svc.cluster.local", Port: 80}, Deciders{})
		if err != nil {
			t.Fatal(err)
		}
		counters := map[string]bool{}
		for _, l := range got.Targets[0].Limits {
			if l.Counts {
				counters[l.Counter] = true
			}
		}
		if names := slices.Sorted(maps.Keys(counters)); !slices.Equal(names, c.want) || len(got.Targets[0].Ignored) != c.ignored {
			t.Errorf("%s: %q count, want %q; ignored %q", c.name, names, c.want, got.Targets[0].Ignored)
		}
	}
}
