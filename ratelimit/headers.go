package ratelimit

import (
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/types/known/structpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

// The headers of answers: x-ratelimit-* in the form of
// draft-ietf-httpapi-ratelimit-headers-03, which Envoy speaks too, Retry-After of
// RFC 9110 section 10.2.3 in seconds.
const (
	headerLimit      = configpb.QuotaLimitHeader
	headerRemaining  = "x-ratelimit-remaining"
	headerReset      = "x-ratelimit-reset"
	headerRetryAfter = "retry-after"
)

// modeHeader says how a quota was decided, if not as it should be.
const (
	modeHeader = "x-writ-quota"
	modeLocal  = "local"
)

// markAlone says that this replica decided without the others, while the shared store,
// or a server of it that these limits are counted by, is away.
func (s *Server) markAlone(now time.Time, d *decision, resp *rlsv3.RateLimitResponse) {
	if s.alone != nil && s.alone(now, d.uses) && len(resp.GetResponseHeadersToAdd()) > 0 {
		resp.ResponseHeadersToAdd = append(resp.ResponseHeadersToAdd, &corev3.HeaderValue{Key: modeHeader, Value: modeLocal})
	}
}

// DeniedByHeader names the limit that refused.
const DeniedByHeader = "x-writ-denied-by"

// The keys of the dynamic metadata, which Envoy keeps under
// envoy.filters.http.ratelimit for its access log.
const (
	metadataDeniedBy = "denied_by"
	metadataObserved = "observed"
)

// refusalBody is all that a refused caller reads; the headers say which limit.
const refusalBody = "quota exceeded\n"

// maxPolicies bounds the quota policies listed in x-ratelimit-limit.
const maxPolicies = 8

// describe adds headers about the limit that refused, else about the one of which
// the least is left, and what names the rule. For domains of files there are
// none, as with envoyproxy/ratelimit.
func (d *decision) describe(resp *rlsv3.RateLimitResponse) {
	refused := resp.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT
	d.explain(resp, refused)
	it := d.chosen(refused)
	if it == nil {
		return
	}
	u, out := &d.uses[it.use], &d.outcomes[it.use]
	add := func(key, value string) {
		resp.ResponseHeadersToAdd = append(resp.ResponseHeadersToAdd, &corev3.HeaderValue{Key: key, Value: value})
	}
	add(headerLimit, d.limitValue(u))
	add(headerRemaining, strconv.FormatUint(uint64(out.Remaining), 10))
	add(headerReset, seconds(out.Reset))
	if !refused {
		return
	}
	add(headerRetryAfter, seconds(max(out.RetryAfter, time.Second)))
	add(DeniedByHeader, it.id)
	resp.RawBody = []byte(refusalBody)
}

// chosen is the limit that the headers are about. Of several that refuse it is
// the one that holds longest: to come back earlier would be in vain.
func (d *decision) chosen(refused bool) *item {
	var best *item
	for i := range d.items {
		it := &d.items[i]
		if it.use < 0 || it.shadow || d.uses[it.use].Op != limit.Take {
			continue
		}
		out := &d.outcomes[it.use]
		if refused && !out.Over {
			continue
		}
		if best == nil {
			best = it
			continue
		}
		than := &d.outcomes[best.use]
		if refused && out.RetryAfter > than.RetryAfter || !refused && out.Remaining < than.Remaining {
			best = it
		}
	}
	return best
}

// limitValue is the chosen limit and the policies of all that were asked, it first.
func (d *decision) limitValue(chosen *limit.Use) string {
	var b strings.Builder
	b.WriteString(strconv.FormatUint(uint64(chosen.Limit.Requests()), 10))
	policy := func(u *limit.Use) {
		b.WriteString(", ")
		b.WriteString(strconv.FormatUint(uint64(u.Limit.Requests()), 10))
		if u.Limit.Algorithm() == limit.Concurrency { // no window: at any time
			return
		}
		b.WriteString(";w=")
		b.WriteString(seconds(u.Limit.Window()))
	}
	policy(chosen)
	listed := 1
	for i := range d.items {
		it := &d.items[i]
		if it.use < 0 || it.shadow || d.uses[it.use].Op != limit.Take || &d.uses[it.use] == chosen || listed == maxPolicies {
			continue
		}
		policy(&d.uses[it.use])
		listed++
	}
	return b.String()
}

// explain names the rules for the access log.
func (d *decision) explain(resp *rlsv3.RateLimitResponse, refused bool) {
	var observed []string
	for i := range d.items {
		if it := &d.items[i]; it.use >= 0 && it.shadow && d.outcomes[it.use].Over {
			observed = append(observed, it.id)
		}
	}
	told := d.told()
	if !refused && len(observed) == 0 && !told {
		return
	}
	resp.DynamicMetadata = &structpb.Struct{Fields: make(map[string]*structpb.Value)}
	if it := d.chosen(true); refused && it != nil {
		resp.DynamicMetadata.Fields[metadataDeniedBy] = structpb.NewStringValue(it.id)
	}
	if len(observed) > 0 {
		resp.DynamicMetadata.Fields[metadataObserved] = structpb.NewStringValue(strings.Join(observed, ", "))
	}
	if told {
		resp.DynamicMetadata.Fields[configpb.QuotaToldKey] = structpb.NewBoolValue(true)
	}
}

// told says that the Envoy wants to know that all of its limits were counted: else it
// counts by itself.
func (d *decision) told() bool {
	wanted := false
	for i := range d.items {
		if d.items[i].use < 0 {
			return false
		}
		wanted = wanted || d.items[i].told
	}
	return wanted
}

// seconds writes a duration in whole seconds, rounded up.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64(ceil(d)/time.Second), 10)
}
