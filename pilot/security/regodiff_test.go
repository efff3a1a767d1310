package security

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"
	"unicode/utf8"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sslv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	ipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/ip/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/metadata/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/regoform"
	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

var (
	regoSeed     = flag.Uint64("rego-seed", 0, "repeat a run of the differential tests of Rego; 0 is a new one")
	regoRequests = flag.Int("rego-requests", 2000, "how many requests TestRegoDifferential compares; the long run has 1000000")
)

// regoMesh is a mesh with one RegoPolicy and a RequestAuthentication for everybody.
func regoMesh(t testing.TB, module string) *model.Mesh {
	t.Helper()
	m := newMesh(t, newSigner(t).document("jwt", testIssuer, ""))
	m.Deciders.Authz = "unix:///nowhere"
	m.RegoPolicies = []*model.RegoPolicy{regoOf("p", module)}
	return m
}

func regoOf(name, module string) *model.RegoPolicy {
	p := regoPolicy(name, false)
	p.Module, p.Query = module, "data.p.allow"
	p.Form = new(rego.Splitter).Split(name, module, p.Query)
	p.Fingerprint = p.ContentHash()
	return p
}

// refOf is how proxies name a policy.
func refOf(p *model.RegoPolicy) string { return configpb.PolicyRef(p.Namespace, p.Name, p.Fingerprint) }

// TestRegoDifferential compares what OPA says of random requests under random
// policies with what the filters for Envoy say, by an evaluator of RBAC.
func TestRegoDifferential(t *testing.T) {
	seed := *regoSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat with -rego-seed %d", seed)
	g := regoGenerator{Rand: rand.New(rand.NewPCG(seed, 0))} //nolint:gosec // repeatable, not secret
	base := regoMesh(t, "package p")
	const each = 25
	counts := map[string]int{}
	for done := 0; done < *regoRequests; {
		module := g.module()
		program, err := rego.Compile(t.Context(), rego.Source{Modules: map[string]string{"p.rego": module}}, "data.p.allow", rego.Options{})
		if err != nil {
			counts["does not compile"]++
			if counts["does not compile"] > *regoRequests {
				t.Fatalf("none compiles: %v\n%s", err, module)
			}
			continue
		}
		base.RegoPolicies = []*model.RegoPolicy{regoOf("p", module)}
		c := compiler(t, base)
		placed := c.RegoPlacements(workload(), model.WorkloadPort{})[0]
		counts["policies: "+placed.Runs]++
		rules := regoFilterOf(t, compileHTTP(t, base, workload()))
		known := map[*xdscorev3.TypedExtensionConfig]proto.Message{}
		for range each {
			done++
			compareRego(t, module, program, placed, rules, rbacEvaluator{t, g.request(), known}, counts)
		}
	}
	t.Logf("%v", counts)
	all := []string{"allowed in Envoy", "refused in Envoy", "asked"}
	if *regoRequests >= 20*each*each {
		all = append(all, "policies: "+regoInEnvoy, "policies: "+regoInBoth, "policies: "+regoInAuthz)
	}
	for _, what := range all {
		if counts[what] == 0 {
			t.Errorf("nothing was %s", what)
		}
	}
}

func regoFilterOf(t testing.TB, h *HTTP) *rbachttpv3.RBAC {
	t.Helper()
	packed := h.PerFilterConfig[filterRegoRules]
	if packed == nil {
		return nil
	}
	var per rbachttpv3.RBACPerRoute
	if err := packed.UnmarshalTo(&per); err != nil {
		t.Fatal(err)
	}
	return per.GetRbac()
}

func compareRego(t *testing.T, module string, program *rego.Program, placed RegoPlacement, rules *rbachttpv3.RBAC, e rbacEvaluator, counts map[string]int) {
	t.Helper()
	r := e.r
	want, err := askOPA(t, program, r)
	refused, allowed := e.matches(rules.GetMatcher()), e.matches(rules.GetShadowMatcher())
	if rules.GetShadowMatcher() == nil && placed.Runs == regoInEnvoy {
		allowed = !refused
	}
	switch {
	case refused && allowed:
		t.Error("refused and allowed at once")
	case refused:
		counts["refused in Envoy"]++
		if want.Allowed {
			t.Error("Envoy refuses what OPA allows")
		}
	case allowed:
		counts["allowed in Envoy"]++
		if !want.Allowed || err != nil || len(want.Headers) > 0 {
			t.Errorf("Envoy lets through what OPA refuses or changes: %+v, %v", want, err)
		}
	default:
		counts["asked"]++
	}
	if t.Failed() {
		t.Fatalf("request %+q\nclaims %v\n%s\n%+v", r, r.claims, module, placed)
	}
}

// askOPA decides as authz does. A request that authz cannot take apart is refused.
func askOPA(t testing.TB, program *rego.Program, r regoRequest) (d rego.Decision, err error) {
	t.Helper()
	check, token := r.check(t)
	in, err := rego.NewInput(check, rego.InputOptions{Token: token})
	if err != nil {
		return d, err
	}
	return program.Eval(context.Background(), in, 0)
}

// token is what authz makes of the payload that jwt_authn leaves.
func (r regoRequest) token(t testing.TB) *rego.Token {
	t.Helper()
	if r.claims == nil {
		return nil
	}
	payload, err := structpb.NewStruct(r.claims)
	if err != nil {
		t.Fatal(err)
	}
	return &rego.Token{Issuer: payload.GetFields()["iss"].GetStringValue(), Payload: payload}
}

// check is what Envoy's ext_authz filter makes of the request.
func (r regoRequest) check(t testing.TB) (*authv3.CheckRequest, *rego.Token) {
	t.Helper()
	http := &authv3.AttributeContext_HttpRequest{Method: r.method, Path: sanitized(r.path), Host: r.host, Scheme: "http", Headers: map[string]string{
		":method": r.method, ":path": sanitized(r.path), ":authority": r.host, ":scheme": "http",
	}}
	for name, values := range r.headers {
		http.Headers[name] = sanitized(strings.Join(values, ","))
	}
	peer := func(address string, port uint32, principal string) *authv3.AttributeContext_Peer {
		return &authv3.AttributeContext_Peer{Principal: principal, Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}}}}
	}
	own, sni := "", ""
	if r.principal != "" {
		own, sni = regoOwn, "httpbin.default"
	}
	a := &authv3.AttributeContext{
		Source: peer(r.source, 40000, r.principal), Destination: peer("127.0.0.1", 8000, own),
		Request: &authv3.AttributeContext_Request{Http: http}, TlsSession: &authv3.AttributeContext_TLSSession{Sni: sni},
	}
	return &authv3.CheckRequest{Attributes: a}, r.token(t)
}

// sanitized puts "!" in the place of each byte that is not UTF-8, as Envoy does.
func sanitized(s string) string {
	var b strings.Builder
	for s != "" {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			b.WriteByte('!')
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// rbacEvaluator is Envoy's RBAC for one request, as far as Rego comes to it.
type rbacEvaluator struct {
	t testing.TB
	r regoRequest
	// known are the extensions of the tree that were unpacked before.
	known map[*xdscorev3.TypedExtensionConfig]proto.Message
}

func (e rbacEvaluator) decoded(c *xdscorev3.TypedExtensionConfig) proto.Message {
	if m := e.known[c]; m != nil {
		return m
	}
	m, err := c.GetTypedConfig().UnmarshalNew()
	if err != nil {
		e.t.Fatal(err)
	}
	e.known[c] = m
	return m
}

// matches says whether one of the rules of a tree that regoTree made is met.
func (e rbacEvaluator) matches(m *xdsmatcherv3.Matcher) bool {
	for _, f := range m.GetMatcherList().GetMatchers() {
		if !e.predicate(f.GetPredicate()) {
			continue
		}
		if inner := f.GetOnMatch().GetMatcher(); inner != nil {
			return e.matches(inner)
		}
		return true
	}
	return m.GetOnNoMatch().GetMatcher() != nil && e.matches(m.GetOnNoMatch().GetMatcher())
}

func (e rbacEvaluator) predicate(p *predicate) bool {
	no := func(p *predicate) bool { return !e.predicate(p) }
	switch x := p.GetMatchType().(type) {
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher:
		return !e.predicate(x.NotMatcher)
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_AndMatcher:
		return !slices.ContainsFunc(x.AndMatcher.GetPredicate(), no)
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_OrMatcher:
		return slices.ContainsFunc(x.OrMatcher.GetPredicate(), e.predicate)
	}
	single := p.GetSinglePredicate()
	switch in := e.decoded(single.GetInput()).(type) {
	case *xdsmatcherv3.HttpAttributesCelMatchInput:
		return e.r.principal != ""
	case *matcherv3.HttpRequestHeaderMatchInput:
		value, there := e.header(in.GetHeaderName())
		return there && holds(e.t, single.GetValueMatch(), value)
	case *sslv3.UriSanInput:
		return e.r.principal != "" && holds(e.t, single.GetValueMatch(), e.r.principal)
	case *networkv3.ServerNameInput:
		return e.r.principal != "" && holds(e.t, single.GetValueMatch(), "httpbin.default")
	case *networkv3.DestinationPortInput:
		return holds(e.t, single.GetValueMatch(), "8000")
	case *networkv3.DirectSourceIPInput:
		return e.within(single, e.r.source)
	case *networkv3.DestinationIPInput:
		return e.within(single, "127.0.0.1")
	case *networkv3.DynamicMetadataInput:
		m, _ := e.decoded(single.GetCustomMatch()).(*metadatav3.Metadata)
		return e.metadata(in, m.GetValue())
	}
	e.t.Fatalf("the evaluator does not know %v", p)
	return false
}

func (e rbacEvaluator) within(single *xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate, address string) bool {
	m, _ := e.decoded(single.GetCustomMatch()).(*ipv3.Ip)
	return slices.ContainsFunc(m.GetCidrRanges(), func(c *corev3.CidrRange) bool { return inBlock(c, address) })
}

func (e rbacEvaluator) header(name string) (string, bool) {
	switch name {
	case ":method":
		return e.r.method, true
	case ":path":
		return e.r.path, true
	case ":authority":
		return e.r.host, true
	case ":scheme":
		return "http", true
	}
	values, there := e.r.headers[name]
	return strings.Join(values, ","), there && len(values) > 0
}

func (e rbacEvaluator) metadata(in *networkv3.DynamicMetadataInput, m *matcherv3.ValueMatcher) bool {
	if e.r.claims == nil {
		return false
	}
	payload, err := structpb.NewStruct(e.r.claims)
	if err != nil {
		e.t.Fatal(err)
	}
	v := structpb.NewStructValue(payload)
	for _, segment := range in.GetPath()[1:] {
		if v = v.GetStructValue().GetFields()[segment.GetKey()]; v == nil {
			return false
		}
	}
	return e.value(m, v)
}

func (e rbacEvaluator) value(m *matcherv3.ValueMatcher, v *structpb.Value) bool {
	switch x := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_PresentMatch:
		_, null := v.GetKind().(*structpb.Value_NullValue)
		return !null
	case *matcherv3.ValueMatcher_BoolMatch:
		b, ok := v.GetKind().(*structpb.Value_BoolValue)
		return ok && b.BoolValue == x.BoolMatch
	case *matcherv3.ValueMatcher_StringMatch:
		s, ok := v.GetKind().(*structpb.Value_StringValue)
		return ok && holds(e.t, asXDS(x.StringMatch), s.StringValue)
	case *matcherv3.ValueMatcher_ListMatch:
		return slices.ContainsFunc(v.GetListValue().GetValues(), func(v *structpb.Value) bool { return e.value(x.ListMatch.GetOneOf(), v) })
	}
	e.t.Fatalf("the evaluator does not know %v", m)
	return false
}

func inBlock(c *corev3.CidrRange, address string) bool {
	p, err := netip.ParsePrefix(fmt.Sprintf("%s/%d", c.GetAddressPrefix(), c.GetPrefixLen().GetValue()))
	return err == nil && p.Contains(netip.MustParseAddr(address))
}

// holds is a StringMatcher; a regular expression takes no byte that is not UTF-8
// but by \C.
func holds(t testing.TB, m *xdsmatcherv3.StringMatcher, value string) bool {
	a := regoform.Atom{Fold: m.GetIgnoreCase()}
	switch x := m.GetMatchPattern().(type) {
	case *xdsmatcherv3.StringMatcher_Exact:
		a.Test, a.Value = regoform.Equal, x.Exact
	case *xdsmatcherv3.StringMatcher_Prefix:
		a.Test, a.Value = regoform.Prefix, x.Prefix
	case *xdsmatcherv3.StringMatcher_Suffix:
		a.Test, a.Value = regoform.Suffix, x.Suffix
	case *xdsmatcherv3.StringMatcher_Contains:
		a.Test, a.Value = regoform.Contains, x.Contains
	case *xdsmatcherv3.StringMatcher_SafeRegex:
		return re2(t, x.SafeRegex.GetRegex(), value)
	default:
		t.Fatalf("the evaluator does not know %v", m)
	}
	return a.Holds(value)
}

func asXDS(m *matcherv3.StringMatcher) *xdsmatcherv3.StringMatcher {
	if m.GetContains() != "" {
		return &xdsmatcherv3.StringMatcher{MatchPattern: &xdsmatcherv3.StringMatcher_Contains{Contains: m.GetContains()}}
	}
	return xdsString(m)
}

// re2Cache are compiled expressions.
var re2Cache sync.Map

// re2 matches as RE2 does in Go's words: bytes that are not UTF-8 become a
// character that nothing but \C takes.
func re2(t testing.TB, expression, value string) bool {
	t.Helper()
	const invalid, anyByte = '\ue000', '\ue001'
	known, ok := re2Cache.Load(expression)
	if !ok {
		tree, err := syntax.Parse(strings.ReplaceAll(expression, `\C`, string(anyByte)), syntax.Perl)
		if err != nil {
			t.Fatalf("%s: %v", expression, err)
		}
		var walk func(re *syntax.Regexp)
		walk = func(re *syntax.Regexp) {
			switch {
			case re.Op == syntax.OpAnyChar || re.Op == syntax.OpAnyCharNotNL:
				re.Op, re.Rune = syntax.OpCharClass, []rune{0, invalid - 1, anyByte, unicode.MaxRune}
			case re.Op == syntax.OpLiteral && slices.Equal(re.Rune, []rune{anyByte}):
				re.Op, re.Rune = syntax.OpCharClass, []rune{0, unicode.MaxRune}
			case re.Op == syntax.OpCharClass:
				var pairs []rune
				for i := 0; i < len(re.Rune); i += 2 {
					lo, hi := re.Rune[i], re.Rune[i+1]
					if lo < invalid && hi >= invalid {
						pairs = append(pairs, lo, invalid-1, invalid+1, hi)
					} else {
						pairs = append(pairs, lo, hi)
					}
				}
				re.Rune = pairs
			case re.Op == syntax.OpLiteral && slices.Contains(re.Rune, anyByte):
				t.Fatalf("%s: \\C in a literal", expression)
			}
			for _, sub := range re.Sub {
				walk(sub)
			}
		}
		walk(tree)
		known, _ = re2Cache.LoadOrStore(expression, regexp.MustCompile(`\A(?:`+tree.String()+`)\z`))
	}
	var b strings.Builder
	for value != "" {
		r, n := utf8.DecodeRuneInString(value)
		if r == utf8.RuneError && n == 1 {
			r = invalid
		}
		b.WriteRune(r)
		value = value[n:]
	}
	return known.(*regexp.Regexp).MatchString(b.String())
}
