package security

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	cncfcorev3 "github.com/cncf/xds/go/xds/core/v3"
	cncfmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	setcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	rlqsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rate_limit_quota/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	networkinputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/pilot/envoy"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

const (
	// filterQuotaCounters names the counters of a request's assigned limits in the
	// filter state, under the names of the filters that keep them.
	filterQuotaCounters = "writ.quota.counters"
	// filterQuotaAssigned begins the names of the filters that keep assigned limits,
	// one for each limit: a filter looks at one bucket.
	filterQuotaAssigned = "writ.quota.assigned."
	// assignedReport is how often Envoy is asked to report. It does so every five
	// seconds whatever it is told.
	assignedReport = 5 * time.Second
	// assignedExpired is how long what happens without ratelimit goes on before Envoy
	// begins anew with a bucket; the same holds then.
	assignedExpired = time.Hour
)

// quotaAssigned gathers the limits that the proxy keeps by itself, with what
// ratelimit assigned it. Envoy takes the filters' content from the listener alone, so
// it says nothing about policies: a bucket is whatever counter the filter state names,
// and that comes with the routes.
type quotaAssigned struct {
	names       []*setcommonv3.FilterStateValue
	open, close int
}

// assigned says whether the proxy keeps the limit by itself. One that is only observed
// is counted by ratelimit: a proxy that keeps it refuses.
func (l *quotaLimit) assigned() bool {
	return l.Mode == configpb.QuotaAssigned && !l.Policy.Observe
}

// addAssigned adds the limits that the proxy keeps. They come first: what they refuse
// costs no call.
func (c *Compiler) addAssigned(b *httpBuilder, limits []quotaLimit) error {
	var q quotaAssigned
	for _, limit := range limits {
		if !limit.assigned() {
			continue
		}
		if err := q.add(c, limit); err != nil {
			return fmt.Errorf("%s: limits[%d]: %w", limit.Policy.Ref, limit.Index, err)
		}
	}
	q.addFilters(b)
	return nil
}

// add gives the next filter a limit to keep.
func (q *quotaAssigned) add(c *Compiler, limit quotaLimit) error {
	counter, err := c.counter(limit)
	if err != nil {
		return err
	}
	key := filterQuotaAssigned + "open." + strconv.Itoa(q.open)
	if limit.Policy.FailClosed {
		key = filterQuotaAssigned + "closed." + strconv.Itoa(q.close)
		q.close++
	} else {
		q.open++
	}
	q.names = append(q.names, &setcommonv3.FilterStateValue{
		Key:        &setcommonv3.FilterStateValue_ObjectKey{ObjectKey: key},
		FactoryKey: "envoy.string",
		// Where the limit's condition does not hold nothing is left of the name.
		SkipIfEmpty: limit.condition != "",
		Value: &setcommonv3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: counter},
			}},
		}},
	})
	return nil
}

// counter is the name of a limit's counter as ratelimit knows it, with commands of
// Envoy's format in the place of the caller's values.
func (c *Compiler) counter(limit quotaLimit) (string, error) {
	literal, value := limit.pieces()
	name := literal(limit.Policy.Namespace + "/" + limit.Policy.Name + "/" + strconv.Itoa(limit.Index))
	for i, d := range limit.Per {
		separator := "&"
		if i == 0 {
			separator = "?"
		}
		name += literal(separator + counterText(d.Text) + "=")
		switch d.Kind {
		case "constant":
			name += literal(counterText(d.Arg))
		case "source.principal", "source.namespace":
			name += value(c.caller(d.Kind, counterCharacters))
		case "request.path":
			if d.Template() == "" || len(d.TemplateNames()) > 0 {
				return "", fmt.Errorf("per: a proxy cannot keep limits by %q", d.Text)
			}
			name += value(celString(quotaKept+d.Text) + " in filter_state ? " + celString(counterText(d.Template())) + " : '" + quotaNoValue + "'")
		default:
			return "", fmt.Errorf("per: a proxy cannot keep limits by %q", d.Text)
		}
	}
	return name, nil
}

// pieces says how texts and expressions stand in the format of a counter's name: where
// the limit's condition does not hold each of them comes to nothing.
func (l *quotaLimit) pieces() (literal, value func(string) string) {
	if l.condition == "" {
		return func(s string) string { return strings.ReplaceAll(s, "%", "%%") }, formatted
	}
	value = func(s string) string { return formatted(l.condition + " ? (" + s + ") : ''") }
	return func(s string) string { return value(celString(s)) }, value
}

// counterCharacters are those of SPIFFE IDs. A name with others, which a foreign
// authority may have signed, is nobody's: it must not end one value and begin another.
const counterCharacters = "[A-Za-z0-9._/-]"

// caller takes the caller's principal or namespace out of its SPIFFE ID, as far as it
// is written with these characters.
func (c *Compiler) caller(kind, characters string) string {
	if kind == "source.namespace" {
		return c.quotaNamespace(strings.Replace(characters, "/", "", 1))
	}
	return spiffePart("^spiffe://(" + characters + "+)$")
}

// counterText writes a text as it stands in the name of a counter.
func counterText(s string) string {
	return strings.NewReplacer("%", "%25", "&", "%26", "=", "%3d").Replace(s)
}

// addFilters adds the filters, after what names the counters.
func (q *quotaAssigned) addFilters(b *httpBuilder) {
	if len(q.names) == 0 {
		return
	}
	b.addGeneric(filterQuotaCounters, &setfilterstatev3.Config{})
	b.enable(filterQuotaCounters, &setfilterstatev3.Config{OnRequestHeaders: q.names})
	for i := range q.open {
		b.add(filterQuotaAssigned+"open."+strconv.Itoa(i), assignedFilter(filterQuotaAssigned+"open."+strconv.Itoa(i), typev3.RateLimitStrategy_ALLOW_ALL))
	}
	for i := range q.close {
		b.add(filterQuotaAssigned+"closed."+strconv.Itoa(i), assignedFilter(filterQuotaAssigned+"closed."+strconv.Itoa(i), typev3.RateLimitStrategy_DENY_ALL))
	}
}

// assignedFilter keeps the bucket that the filter state names, if it names one. Before
// ratelimit has answered, and while it is away, the rule without holds.
func assignedFilter(key string, without typev3.RateLimitStrategy_BlanketRule) *rlqsv3.RateLimitQuotaFilterConfig {
	fallback := &typev3.RateLimitStrategy{Strategy: &typev3.RateLimitStrategy_BlanketRule_{BlanketRule: without}}
	input := func() proto.Message { return &networkinputsv3.FilterStateInput{Key: key} }
	settings := &rlqsv3.RateLimitQuotaBucketSettings{
		BucketIdBuilder: &rlqsv3.RateLimitQuotaBucketSettings_BucketIdBuilder{
			BucketIdBuilder: map[string]*rlqsv3.RateLimitQuotaBucketSettings_BucketIdBuilder_ValueBuilder{
				configpb.QuotaCounterKey: {ValueSpecifier: &rlqsv3.RateLimitQuotaBucketSettings_BucketIdBuilder_ValueBuilder_CustomValue{
					CustomValue: extension("counter", input()),
				}},
			},
		},
		ReportingInterval:    durationpb.New(assignedReport),
		DenyResponseSettings: assignedRefusal(),
		NoAssignmentBehavior: &rlqsv3.RateLimitQuotaBucketSettings_NoAssignmentBehavior{
			NoAssignmentBehavior: &rlqsv3.RateLimitQuotaBucketSettings_NoAssignmentBehavior_FallbackRateLimit{FallbackRateLimit: fallback},
		},
		ExpiredAssignmentBehavior: &rlqsv3.RateLimitQuotaBucketSettings_ExpiredAssignmentBehavior{
			ExpiredAssignmentBehaviorTimeout: durationpb.New(assignedExpired),
			ExpiredAssignmentBehavior:        &rlqsv3.RateLimitQuotaBucketSettings_ExpiredAssignmentBehavior_FallbackRateLimit{FallbackRateLimit: fallback},
		},
	}
	return &rlqsv3.RateLimitQuotaFilterConfig{
		Domain: configpb.QuotaDomain,
		RlqsServer: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: rateLimitCluster}},
		},
		BucketMatchers: &cncfmatcherv3.Matcher{MatcherType: &cncfmatcherv3.Matcher_MatcherList_{MatcherList: &cncfmatcherv3.Matcher_MatcherList{
			Matchers: []*cncfmatcherv3.Matcher_MatcherList_FieldMatcher{{
				Predicate: &cncfmatcherv3.Matcher_MatcherList_Predicate{MatchType: &cncfmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{
					SinglePredicate: &cncfmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
						Input: &cncfcorev3.TypedExtensionConfig{Name: "counter", TypedConfig: envoy.Any(input())},
						Matcher: &cncfmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: &cncfmatcherv3.StringMatcher{
							MatchPattern: &cncfmatcherv3.StringMatcher_Contains{Contains: "/"}, // as every counter's name does
						}},
					},
				}},
				OnMatch: &cncfmatcherv3.Matcher_OnMatch{OnMatch: &cncfmatcherv3.Matcher_OnMatch_Action{
					Action: &cncfcorev3.TypedExtensionConfig{Name: "bucket", TypedConfig: envoy.Any(settings)},
				}},
			}},
		}}},
	}
}

// assignedRefusal is what a caller hears whose limit is used up.
func assignedRefusal() *rlqsv3.RateLimitQuotaBucketSettings_DenyResponseSettings {
	return &rlqsv3.RateLimitQuotaBucketSettings_DenyResponseSettings{
		HttpStatus: &typev3.HttpStatus{Code: typev3.StatusCode_TooManyRequests},
		GrpcStatus: &status.Status{Code: int32(codes.ResourceExhausted)},
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{{
			Header: &corev3.HeaderValue{Key: "retry-after", Value: strconv.Itoa(int(assignedReport.Seconds()))},
		}},
	}
}
