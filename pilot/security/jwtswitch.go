package security

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/pilot/envoy"
)

// What tokens a request has to have, and what rules make of their claims, travel in two
// resources and have to count together (decision 0039): virtual hosts, which have the
// rules, say by name which requirement of the filter is theirs, and while they change
// the filter has those of before and after.

// requireByName gives a filter its requirement, under a name that no other one has, and
// returns the name. Keys that were fetched are no part of it: they change often, and no
// rules go with them.
func (c *Compiler) requireByName(filter *jwtv3.JwtAuthentication, rules []namedRule) string {
	filter.RequirementMap = map[string]*jwtv3.JwtRequirement{"": requirements(rules)}
	lasting := proto.CloneOf(filter)
	for _, r := range rules {
		if c.fetchedKeys(r) == "" {
			continue
		}
		for _, name := range []string{r.provider, r.provider + again} {
			if provider := lasting.GetProviders()[name]; provider != nil {
				provider.JwksSourceSpecifier = nil
			}
		}
	}
	sum := sha256.Sum256(wire(lasting))
	name := hex.EncodeToString(sum[:12])
	filter.RequirementMap = map[string]*jwtv3.JwtRequirement{name: filter.GetRequirementMap()[""]}
	return name
}

const (
	// ofBefore is before the names of providers that only earlier requirements have, and
	// the requirement's own name behind it.
	ofBefore = "before "
	// maxRequirements bounds those of one filter, where routes never keep up.
	maxRequirements = 8
)

// BothFilters gives a filter that stands in while virtual hosts change from what the one
// before is for to what the one after is for, both of them resources of extension
// configuration: each virtual host finds its requirement in it. It is nil if after will
// do by itself.
func BothFilters(before, after *anypb.Any) (*anypb.Any, error) {
	oldOuter, oldJWT, err := jwtFilter(before)
	if err != nil || oldOuter == nil {
		return nil, err
	}
	outer, jwt, err := jwtFilter(after)
	if err != nil || outer == nil {
		return nil, err
	}
	missing := false
	for name := range oldJWT.GetRequirementMap() {
		_, there := jwt.GetRequirementMap()[name]
		missing = missing || !there
	}
	if !missing || len(oldJWT.GetRequirementMap()) >= maxRequirements {
		return nil, nil
	}
	for name, requirement := range oldJWT.GetRequirementMap() {
		if _, there := jwt.GetRequirementMap()[name]; !there {
			takeProviders(requirement, ofBefore+name+" ", oldJWT.GetProviders(), jwt.GetProviders())
			jwt.RequirementMap[name] = requirement
		}
	}
	outer.TypedConfig = envoy.Any(jwt)
	return envoy.Any(outer), nil
}

// jwtFilter is nil for another kind of filter.
func jwtFilter(resource *anypb.Any) (*corev3.TypedExtensionConfig, *jwtv3.JwtAuthentication, error) {
	outer, jwt := &corev3.TypedExtensionConfig{}, &jwtv3.JwtAuthentication{}
	if !resource.MessageIs(outer) {
		return nil, nil, nil
	}
	if err := resource.UnmarshalTo(outer); err != nil {
		return nil, nil, fmt.Errorf("filter: %w", err)
	}
	if !outer.GetTypedConfig().MessageIs(jwt) {
		return nil, nil, nil
	}
	if err := outer.GetTypedConfig().UnmarshalTo(jwt); err != nil {
		return nil, nil, fmt.Errorf("filter %s: %w", outer.GetName(), err)
	}
	if jwt.Providers == nil {
		jwt.Providers = map[string]*jwtv3.JwtProvider{}
	}
	if jwt.RequirementMap == nil {
		jwt.RequirementMap = map[string]*jwtv3.JwtRequirement{}
	}
	return outer, jwt, nil
}

// takeProviders takes the providers of an earlier requirement over, and no others, with
// this before their names unless they have it already. So keys that are fetched anew while
// routes do not keep up leave no more providers than there are requirements for.
func takeProviders(r *jwtv3.JwtRequirement, before string, from, to map[string]*jwtv3.JwtProvider) {
	switch of := r.GetRequiresType().(type) {
	case *jwtv3.JwtRequirement_ProviderName:
		provider := from[of.ProviderName]
		if !strings.HasPrefix(of.ProviderName, ofBefore) {
			of.ProviderName = before + of.ProviderName
		}
		if provider != nil {
			to[of.ProviderName] = provider
		}
	case *jwtv3.JwtRequirement_RequiresAny:
		for _, one := range of.RequiresAny.GetRequirements() {
			takeProviders(one, before, from, to)
		}
	case *jwtv3.JwtRequirement_RequiresAll:
		for _, one := range of.RequiresAll.GetRequirements() {
			takeProviders(one, before, from, to)
		}
	}
}

// RoutesServed tells whether each virtual host of a route configuration finds in a filter,
// which is a resource of extension configuration, the requirement that it names. For one
// that names none the filter is switched off.
func RoutesServed(routes, filter *anypb.Any) (bool, error) {
	outer, jwt, err := jwtFilter(filter)
	if err != nil || outer == nil {
		return false, err
	}
	var config routev3.RouteConfiguration
	if err := routes.UnmarshalTo(&config); err != nil {
		return false, fmt.Errorf("routes: %w", err)
	}
	for _, host := range config.GetVirtualHosts() {
		named, there := host.GetTypedPerFilterConfig()[outer.GetName()]
		if !there {
			continue
		}
		var its jwtv3.PerRouteConfig
		if err := named.UnmarshalTo(&its); err != nil {
			return false, fmt.Errorf("virtual host %s: %w", host.GetName(), err)
		}
		if _, there := jwt.GetRequirementMap()[its.GetRequirementName()]; !there {
			return false, nil
		}
	}
	return true, nil
}
