package security

import (
	"math"
	"slices"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

const (
	// localMarking is the openHeader of what the proxy's own count decided.
	localMarking = "proxy"
	// localFill is how often Envoy's buckets are looked at for more; the windows of all
	// have to be multiples of it (50ms at least).
	localFill = 50 * time.Millisecond
	// localCallers is how many callers of a limit the proxy tells apart. Of more it
	// forgets the one that it saw longest ago.
	localCallers = 4096
)

// answered is true once ratelimit has counted the request.
const answered = "'" + rateLimitMetadata + "' in metadata.filter_metadata && '" + configpb.QuotaToldKey + "' in metadata.filter_metadata['" + rateLimitMetadata + "']"

// local says that the proxy counts by itself what ratelimit does not answer for.
func (l *quotaLimit) local() bool { return l.Policy.FailLocal && !l.Policy.Observe }

// quotaLocal gathers the limits that the proxy counts by itself while ratelimit does not
// answer. Whatever it lets pass in between takes nothing from them.
type quotaLocal struct {
	limits   []*routev3.RateLimit
	buckets  []*commonratelimitv3.LocalRateLimitDescriptor
	policies []model.Ref
	slowest  time.Duration
}

// addFilter adds the filter, which does nothing where it is not enabled.
func (*quotaLocal) addFilter(b *httpBuilder) {
	b.addGeneric(filterQuotaLocal, &localratelimitv3.LocalRateLimit{StatPrefix: "quota_local"})
}

// add has the proxy count a limit. caller are the entries that tell callers apart.
func (q *quotaLocal) add(l quotaLimit, caller []*routev3.RateLimit_Action) {
	condition := celNot(answered)
	if l.condition != "" {
		condition = l.condition + " && " + condition
	}
	name, index := l.Policy.Namespace+"/"+l.Policy.Name, strconv.Itoa(l.Index)
	q.limits = append(q.limits, &routev3.RateLimit{Actions: slices.Concat(
		[]*routev3.RateLimit_Action{policyEntry(name, condition), constant(configpb.QuotaLimitKey, index)}, caller,
	)})
	entries := []*commonratelimitv3.RateLimitDescriptor_Entry{
		{Key: configpb.QuotaPolicyKey, Value: name}, {Key: configpb.QuotaLimitKey, Value: index},
	}
	for _, d := range l.Per {
		entry := &commonratelimitv3.RateLimitDescriptor_Entry{Key: d.Text} // any value
		if d.Kind == "constant" {
			entry.Value = d.Arg
		}
		entries = append(entries, entry)
	}
	bucket, each := localBucket(l.QuotaLimit)
	q.buckets = append(q.buckets, &commonratelimitv3.LocalRateLimitDescriptor{Entries: entries, TokenBucket: bucket})
	q.slowest = max(q.slowest, each)
	if !slices.Contains(q.policies, l.Policy.Ref) {
		q.policies = append(q.policies, l.Policy.Ref)
	}
}

// localBucket lets never more pass than the limit in any stretch of its window: half of
// it at once and the rest, evenly spread, in the window. With QuotaGCRA it is the limit
// itself. each is how long one more takes.
func localBucket(l model.QuotaLimit) (bucket *typev3.TokenBucket, each time.Duration) {
	atOnce := max(1, l.Requests/2)
	more := l.Requests - atOnce + 1
	if l.Algorithm == configpb.QuotaGCRA {
		atOnce, more = max(1, l.Burst), l.Requests
	}
	each = l.Every / time.Duration(more)
	// A window is rounded up to what Envoy can measure, and one below that has less of it.
	window := (l.Every + localFill - 1).Truncate(localFill)
	if l.Every < localFill {
		more = uint32(min(uint64(more)*uint64(localFill/l.Every), math.MaxUint32)) //nolint:gosec // bounded
	}
	return &typev3.TokenBucket{MaxTokens: atOnce, TokensPerFill: wrapperspb.UInt32(more), FillInterval: durationpb.New(window)}, each
}

// enable gives the filter its content, if there is any.
func (q *quotaLocal) enable(b *httpBuilder) {
	if len(q.limits) == 0 {
		return
	}
	all := &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}}
	says := func(key, value string) *corev3.HeaderValueOption {
		return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: key, Value: value}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}
	}
	b.enable(filterQuotaLocal, &localratelimitv3.LocalRateLimit{
		StatPrefix: "quota_local",
		// What no limit is about takes from a bucket that is never empty.
		TokenBucket:                     &typev3.TokenBucket{MaxTokens: math.MaxUint32, TokensPerFill: wrapperspb.UInt32(math.MaxUint32), FillInterval: durationpb.New(localFill)},
		AlwaysConsumeDefaultTokenBucket: wrapperspb.Bool(false),
		FilterEnabled:                   all,
		FilterEnforced:                  all,
		RateLimits:                      q.limits,
		Descriptors:                     q.buckets,
		MaxDynamicDescriptors:           wrapperspb.UInt32(localCallers),
		RateLimitedAsResourceExhausted:  true,
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{
			says(openHeader, localMarking),
			says(DeniedByHeader, "QuotaPolicy "+nameList(q.policies)+" (ratelimit does not answer)"),
			says("retry-after", strconv.FormatInt(int64((q.slowest+time.Second-1)/time.Second), 10)),
		},
	})
}
