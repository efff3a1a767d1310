package security

import (
	"cmp"
	"slices"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"

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
func markOpen(b *httpBuilder, limits []quotaLimit) {
	var open, local []string
	for _, l := range limits {
		switch condition := cmp.Or(l.condition, always); {
		case l.Policy.Observe || l.Policy.FailClosed || l.assigned():
		case l.local():
			local = append(local, condition)
		default:
			open = append(open, condition)
		}
	}
	if len(open)+len(local) > 0 {
		b.enable(filterQuotaMark, &headermutationv3.HeaderMutationPerRoute{Mutations: openMark(anyLimit(open), anyLimit(local))})
	}
}

// maxAnyLimit bounds what a mark asks about limits, in characters: it stands in the mark's
// expression up to three times, and Envoy refuses one of more than 100,000.
const maxAnyLimit = 30_000

// anyLimit is celAny of the conditions of limits, many of which have the same. Where it
// is too long for Envoy, requests that no limit counts are marked as well.
func anyLimit(conditions []string) string {
	var different []string
	for _, condition := range conditions {
		if !slices.Contains(different, condition) {
			different = append(different, condition)
		}
	}
	if text := celAny(different); len(text) <= maxAnyLimit {
		return text
	}
	return always
}

// openMark marks answers of the program that lack what ratelimit gives to all for which
// it was asked: open and local are true of those that it was asked for, and either let
// pass without an answer or counted by the proxy. An empty value adds no header. The
// filter stands before those that ask, so that it sees what they add.
func openMark(open, local string) *headermutationv3.Mutations {
	value := celAll([]string{`response.code_details == 'via_upstream' && !('` + configpb.QuotaLimitHeader + `' in response.headers)`, celAny([]string{open, local})})
	marking := "'" + openMarking + "'"
	switch open {
	case always:
	case never:
		marking = "'" + localMarking + "'"
	default:
		marking = "(" + open + " ? " + marking + " : '" + localMarking + "')"
	}
	return &headermutationv3.Mutations{ResponseMutations: []*mutationrulesv3.HeaderMutation{{
		Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: openHeader, Value: formatted(value + " ? " + marking + " : ''")},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}}}
}
