package security

import (
	"maps"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/pilot/envoy"
)

// tokensOf gives the resource of the filter, and the requirement that its virtual hosts
// name.
func tokensOf(t *testing.T, h *HTTP) (filter *anypb.Any, requirement string) {
	t.Helper()
	var at jwtv3.PerRouteConfig
	if len(h.Extensions) != 1 || h.PerFilterConfig[filterJWT].UnmarshalTo(&at) != nil {
		t.Fatalf("%d filters, %v", len(h.Extensions), h.PerFilterConfig[filterJWT])
	}
	return envoy.Any(h.Extensions[0].Config), at.GetRequirementName()
}

// complete checks that a filter has the requirements and all that these name, and gives
// the names of its providers.
func complete(t *testing.T, filter *anypb.Any, want ...string) (providers []string) {
	t.Helper()
	_, jwt, err := jwtFilter(filter)
	if err != nil || jwt == nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(jwt.GetRequirementMap())); !slices.Equal(got, want) {
		t.Errorf("requirements %q, want %q", got, want)
	}
	var check func(r *jwtv3.JwtRequirement)
	check = func(r *jwtv3.JwtRequirement) {
		if name := r.GetProviderName(); name != "" && jwt.GetProviders()[name] == nil {
			t.Errorf("there is no provider %q", name)
		}
		for _, one := range slices.Concat(r.GetRequiresAny().GetRequirements(), r.GetRequiresAll().GetRequirements()) {
			check(one)
		}
	}
	for _, r := range jwt.GetRequirementMap() {
		check(r)
	}
	return slices.Sorted(maps.Keys(jwt.GetProviders()))
}

func TestBothFilters(t *testing.T) {
	s, other := newSigner(t), newSigner(t)
	compile := func(documents ...string) (*anypb.Any, string) {
		return tokensOf(t, compileHTTP(t, newMesh(t, strings.Join(documents, "\n---\n")), workload()))
	}
	one, nameOne := compile(s.document("a", "https://one", ""))
	two, nameTwo := compile(s.document("a", "https://two", ""), s.document("b", "https://three", ""))
	three, nameThree := compile(other.document("a", "https://one", ""))
	if nameOne == nameTwo || nameOne == nameThree {
		t.Fatal("other issuers, or keys that their author wrote, have the same requirement")
	}
	both, err := BothFilters(one, two)
	if err != nil || both == nil {
		t.Fatal(err)
	}
	if got := complete(t, both, nameOne, nameTwo); !slices.Equal(got, []string{"before " + nameOne + " default/a[0]", "default/a[0]", "default/b[0]"}) {
		t.Errorf("providers %q", got)
	}
	all, err := BothFilters(both, three)
	if err != nil || all == nil {
		t.Fatal(err)
	}
	if got := complete(t, all, nameOne, nameTwo, nameThree); len(got) != 4 {
		t.Errorf("providers %q", got)
	}
	// Back to what was before, while there is still the way to it.
	back, err := BothFilters(both, one)
	if err != nil || back == nil {
		t.Fatal(err)
	}
	complete(t, back, nameOne, nameTwo)
	for _, same := range [][2]*anypb.Any{{one, one}, {one, both}, {envoy.Any(&jwtv3.PerRouteConfig{}), one}, {one, envoy.Any(&jwtv3.PerRouteConfig{})}} {
		if got, err := BothFilters(same[0], same[1]); got != nil || err != nil {
			t.Errorf("%v %v, want nothing", got, err)
		}
	}
	// Routes that never keep up do not make a filter grow without end.
	growing, steps := one, 0
	for ; steps < 2*maxRequirements; steps++ {
		next, _ := compile(s.document("a", "https://"+string(rune('a'+steps)), ""))
		joined, err := BothFilters(growing, next)
		if err != nil {
			t.Fatal(err)
		}
		if joined == nil {
			break
		}
		growing = joined
	}
	if steps != maxRequirements-1 {
		t.Errorf("%d filters in one", steps)
	}
}

// TestFetchedKeysAreNoOtherRequirement: an issuer that takes new keys does not have the
// rules sent again.
func TestFetchedKeysAreNoOtherRequirement(t *testing.T) {
	const document = "kind: RequestAuthentication\nmetadata: {name: a, annotations: {policy.writ.mesh/require: any}}\nspec: {jwtRules: [{issuer: 'https://one', jwksUri: 'https://keys.example/jwks'}]}"
	m := newMesh(t, document)
	var names []string
	var filters []*anypb.Any
	for _, keys := range []string{newSigner(t).jwks(), newSigner(t).jwks()} {
		place, ok := m.KeyPlace("default", m.RequestAuthentications[0].Spec.GetJwtRules()[0])
		if !ok {
			t.Fatal("no place of keys")
		}
		m.KeySets = map[string]string{place.Key(): keys}
		filter, name := tokensOf(t, compileHTTP(t, m, workload()))
		names, filters = append(names, name), append(filters, filter)
	}
	if same := proto.Equal(filters[0], filters[1]); names[0] != names[1] || same {
		t.Errorf("requirements %q, of filters that are the same: %v", names, same)
	}
	// Nor does the filter grow with each of them while routes do not keep up.
	growing, old := tokensOf(t, compileHTTP(t, newMesh(t, newSigner(t).document("a", "https://old", "")), workload()))
	var first []string
	for range 3 {
		for _, filter := range filters {
			var err error
			if growing, err = BothFilters(growing, filter); err != nil || growing == nil {
				t.Fatal(err)
			}
			if got := complete(t, growing, old, names[0]); first == nil {
				first = got
			} else if !slices.Equal(got, first) {
				t.Fatalf("providers %q, at first %q", got, first)
			}
		}
	}
}

// TestRoutesServed: routes are served by a filter that has what each of their virtual
// hosts names, and by no other.
func TestRoutesServed(t *testing.T) {
	s := newSigner(t)
	compile := func(issuer string) (*anypb.Any, *anypb.Any) {
		h := compileHTTP(t, newMesh(t, s.document("a", issuer, "")), workload())
		filter, _ := tokensOf(t, h)
		return filter, h.PerFilterConfig[filterJWT]
	}
	one, ofOne := compile("https://one")
	two, ofTwo := compile("https://two")
	both, err := BothFilters(one, two)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		filter *anypb.Any
		hosts  []*anypb.Any
		want   bool
	}{
		"its own":         {one, []*anypb.Any{ofOne, ofOne}, true},
		"another's":       {one, []*anypb.Any{ofTwo}, false},
		"one of them":     {one, []*anypb.Any{ofOne, ofTwo}, false},
		"of both":         {both, []*anypb.Any{ofOne, ofTwo}, true},
		"names none":      {two, []*anypb.Any{ofTwo, nil}, true},
		"another filter":  {envoy.Any(&corev3.TypedExtensionConfig{Name: filterJWT}), []*anypb.Any{ofOne}, false},
		"not of the type": {ofOne, []*anypb.Any{ofOne}, false},
	} {
		routes := &routev3.RouteConfiguration{}
		for _, named := range c.hosts {
			host := &routev3.VirtualHost{}
			if named != nil {
				host.TypedPerFilterConfig = map[string]*anypb.Any{filterJWT: named}
			}
			routes.VirtualHosts = append(routes.VirtualHosts, host)
		}
		if got, err := RoutesServed(envoy.Any(routes), c.filter); got != c.want || err != nil {
			t.Errorf("%s: %t %v, want %t", name, got, err, c.want)
		}
	}
	if ok, err := RoutesServed(&anypb.Any{TypeUrl: one.GetTypeUrl()}, one); ok || err == nil {
		t.Errorf("no routes: %t %v", ok, err)
	}
}
