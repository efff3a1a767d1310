package security

import (
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	setcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	headertometadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	exprv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

const (
	// quotaDoneTimeout is how long Envoy waits for ratelimit to hear of a request that
	// is over. Nobody waits for the answer.
	quotaDoneTimeout = time.Second
	// costMetadata is where the headers are that tell a cost, by their names.
	costMetadata = "writ.cost"
	// costWithout is what an answer costs that does not have the header, as those of
	// Envoy itself do not.
	costWithout = "1"
	// holdKey is where the request's own name is in the filter state.
	holdKey = "writ.quota.hold"
)

// quotaDone gathers what ratelimit hears of requests once they are over. They are of
// a filter of their own: one that also asks before the request ends the Envoy process
// if ratelimit is away (CVE-2026-26330, Envoy 1.36.2). The filter does not speak of
// requests that a filter before it refused.
type quotaDone struct {
	limits  []*routev3.RateLimit
	headers []string
	holds   bool
	// values are those of the filter state that conditions and dimensions ask for.
	values []*setcommonv3.FilterStateValue
}

// addNames adds the filter for the request's own name, and for what limits ask about it,
// which comes before what asks for them. It does nothing where it is not enabled, as
// the others, which come after what asks ratelimit.
func (q *quotaDone) addNames(b *httpBuilder, values []*setcommonv3.FilterStateValue) {
	q.values = values
	b.addGeneric(filterQuotaHold, &setfilterstatev3.Config{OnRequestHeaders: []*setcommonv3.FilterStateValue{holdName()}})
}

func (*quotaDone) addFilters(b *httpBuilder) {
	b.addGeneric(filterQuotaCost, &headertometadatav3.Config{})
	filter := quotaFilter(stageOpen)
	filter.Timeout = durationpb.New(quotaDoneTimeout)
	filter.RateLimitService.GrpcService.Timeout = durationpb.New(quotaDoneTimeout)
	filter.StatPrefix = "quota_done"
	b.addGeneric(filterQuotaDone, filter)
}

// entries puts together what is asked of a limit, and adds what is told of it once the
// request is over.
func (q *quotaDone) entries(limitOf, caller []*routev3.RateLimit_Action, limit model.QuotaLimit) []*routev3.RateLimit_Action {
	underWay := limit.Algorithm == configpb.QuotaConcurrency
	if limit.Cost == nil && !underWay {
		return slices.Concat(limitOf, caller)
	}
	if underWay || limit.Cost.Reserve > 0 {
		limitOf = append(limitOf, q.hold())
	}
	over := []*routev3.RateLimit_Action{constant(configpb.QuotaDoneKey, "1")}
	q.add(slices.Concat(limitOf, over, caller), q.cost(limit.Cost))
	return slices.Concat(limitOf, caller)
}

// hold gives the entry with the request's own name.
func (q *quotaDone) hold() *routev3.RateLimit_Action {
	q.holds = true
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_Extension{Extension: extension("envoy.rate_limit_descriptors.expr", &exprv3.Descriptor{
		DescriptorKey: configpb.QuotaHoldKey,
		ExprSpecifier: &exprv3.Descriptor_Text{Text: "filter_state['" + holdKey + "']"},
	})}}
}

// add has a descriptor with these entries sent when the request is over, with the hits
// that hits tells; nil tells nothing.
func (q *quotaDone) add(entries []*routev3.RateLimit_Action, hits *routev3.RateLimit_HitsAddend) {
	q.limits = append(q.limits, &routev3.RateLimit{Actions: entries, HitsAddend: hits, ApplyOnStreamDone: true})
}

// cost tells the hits of a request that is over; nil without a cost.
func (q *quotaDone) cost(cost *model.QuotaCost) *routev3.RateLimit_HitsAddend {
	if cost == nil {
		return nil
	}
	switch cost.From {
	case model.CostRequestBytes:
		return &routev3.RateLimit_HitsAddend{Format: "%BYTES_RECEIVED%"}
	case model.CostResponseBytes:
		return &routev3.RateLimit_HitsAddend{Format: "%BYTES_SENT%"}
	case model.CostResponseHeader:
		if !slices.Contains(q.headers, cost.Header) {
			q.headers = append(q.headers, cost.Header)
		}
		return &routev3.RateLimit_HitsAddend{Format: "%DYNAMIC_METADATA(" + costMetadata + ":" + cost.Header + ")%"}
	}
	return nil
}

// enable enables the filters as far as they are needed.
func (q *quotaDone) enable(b *httpBuilder) {
	names := q.values
	if q.holds {
		names = append(names, holdName())
	}
	if len(names) > 0 {
		b.enable(filterQuotaHold, &setfilterstatev3.Config{OnRequestHeaders: names})
	}
	if len(q.headers) > 0 {
		b.enable(filterQuotaCost, costHeaders(q.headers))
	}
	if len(q.limits) > 0 {
		b.enable(filterQuotaDone, &ratelimitv3.RateLimitPerRoute{RateLimits: q.limits})
	}
}

// holdName gives each request a name that nobody else knows, neither the caller nor
// whoever reads its headers.
func holdName() *setcommonv3.FilterStateValue {
	return &setcommonv3.FilterStateValue{
		Key:        &setcommonv3.FilterStateValue_ObjectKey{ObjectKey: holdKey},
		FactoryKey: "envoy.string",
		Value: &setcommonv3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: "%UNIQUE_ID%"},
			}},
		}},
	}
}

// costHeaders keeps the numbers of these headers of an answer.
func costHeaders(names []string) *headertometadatav3.Config {
	c := &headertometadatav3.Config{}
	for _, name := range names {
		number := func(value string) *headertometadatav3.Config_KeyValuePair {
			return &headertometadatav3.Config_KeyValuePair{MetadataNamespace: costMetadata, Key: name, Type: headertometadatav3.Config_NUMBER, Value: value}
		}
		c.ResponseRules = append(c.ResponseRules, &headertometadatav3.Config_Rule{
			Header: name, OnHeaderPresent: number(""), OnHeaderMissing: number(costWithout),
		})
	}
	return c
}
