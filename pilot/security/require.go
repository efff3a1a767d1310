package security

import (
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/writ-mesh/writ/pilot/model"
)

// again is behind the name of a second provider of a rule, which verifies its token
// once more, and behind the key of the metadata where that leaves the payload. Under
// the usual key is the payload of the token that was verified last, which is what
// policies go by; revocation goes by all of them.
const again = " again"

// requirements are what all rules of a workload ask for. Envoy takes a token off
// the request as soon as it has verified it, unless it is to be forwarded, and
// would not find it for another requirement. So the rules that are required or
// observed come first and leave their tokens, then come the others, for which such a
// token is not a bad one, and then each token ahead is noted, and taken off if it is
// not to be forwarded.
func requirements(rules []namedRule) *jwtv3.JwtRequirement {
	var none, ahead []namedRule
	groups := map[string][]namedRule{}
	var order []string
	for _, r := range rules {
		if r.require == model.RequireNone {
			none = append(none, r)
			continue
		}
		ahead = append(ahead, r)
		if groups[r.policy] == nil {
			order = append(order, r.policy)
		}
		groups[r.policy] = append(groups[r.policy], r)
	}
	if len(ahead) == 0 {
		return requirement(none)
	}
	var all []*jwtv3.JwtRequirement
	for _, name := range order {
		all = append(all, required(groups[name]))
	}
	if len(none) > 0 {
		base := requirement(none)
		for _, r := range ahead {
			base = anyOf(base, provided(r.provider+again))
		}
		all = append(all, base)
	}
	for _, r := range ahead {
		all = append(all, anyOf(provided(r.provider+again), missingOrFailed()))
	}
	return allOfThem(all)
}

// required is what the rules of one policy ask for.
func required(rules []namedRule) *jwtv3.JwtRequirement {
	var each []*jwtv3.JwtRequirement
	for _, r := range rules {
		each = append(each, provided(r.provider))
	}
	switch rules[0].require {
	case model.RequireAll:
		return allOfThem(each)
	case model.RequireObserve:
		each = append(each, missingOrFailed())
	}
	if len(each) == 1 {
		return each[0] // Envoy's list wants two
	}
	return anyOf(each...)
}

// second is a provider under its second name.
func second(p *jwtv3.JwtProvider, name string) *jwtv3.JwtProvider {
	out := proto.CloneOf(p)
	out.PayloadInMetadata, out.NormalizePayloadInMetadata, out.ForwardPayloadHeader, out.ClaimToHeaders, out.ClearRouteCache = name, nil, "", nil, false
	out.HeaderInMetadata = ""
	return out
}

func provided(name string) *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: name}}
}

func missingOrFailed() *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissingOrFailed{AllowMissingOrFailed: &emptypb.Empty{}}}
}

// allOfThem wants two at least of Envoy's list.
func allOfThem(reqs []*jwtv3.JwtRequirement) *jwtv3.JwtRequirement {
	if len(reqs) == 1 {
		return reqs[0]
	}
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: reqs}}}
}
