package security

import (
	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// openHeader is on answers to requests that passed without their quotas having been
// asked, because ratelimit did not answer and the policies are open.
const (
	openHeader  = "x-writ-quota"
	openMarking = "unavailable"
)

// markOpen enables the mark where every answer of ratelimit about what passes has
// headers: where a limit is asked for that refuses.
func markOpen(b *httpBuilder, policies []*model.QuotaPolicy) {
	for _, pol := range policies {
		if pol.Observe || pol.FailClosed {
			continue
		}
		for _, limit := range pol.Limits {
			if !isAssigned(pol, limit) {
				b.enable(filterQuotaMark, &headermutationv3.HeaderMutationPerRoute{Mutations: openMark()})
				return
			}
		}
	}
}

// openMark marks answers of the program that lack what ratelimit gives to all. An empty
// value adds no header. The filter stands before those that ask, so that it sees what
// they add.
func openMark() *headermutationv3.Mutations {
	const value = `%CEL(response.code_details == 'via_upstream' && !('` + configpb.QuotaLimitHeader + `' in response.headers) ? '` + openMarking + `' : '')%`
	return &headermutationv3.Mutations{ResponseMutations: []*mutationrulesv3.HeaderMutation{{
		Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: openHeader, Value: value},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}}}
}
