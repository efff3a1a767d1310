package ratelimit

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/quota"
)

// DropInConfig is what the environment of envoyproxy/ratelimit says about its answers.
// It is of the domains of descriptor files and management servers only.
type DropInConfig struct {
	// ShadowMode refuses nothing, whatever the limits say (SHADOW_MODE).
	ShadowMode bool `yaml:"shadow_mode"`
	// QuotaMode refuses a request only if all its limits are over (QUOTA_MODE).
	QuotaMode bool `yaml:"quota_mode"`
	// DynamicMetadata describes the request and what its limits have as metadata in
	// the dynamic metadata of the answer (RESPONSE_DYNAMIC_METADATA).
	DynamicMetadata bool `yaml:"dynamic_metadata"`
	// MergeDomains takes a domain from several files together (MERGE_DOMAIN_CONFIG).
	MergeDomains bool `yaml:"merge_domains"`
	// StopWhenOver counts a request of which a limit is over for those limits alone that
	// are over (STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT).
	StopWhenOver bool `yaml:"stop_when_over"`
	// KeyPrefix begins the names of the counters (CACHE_KEY_PREFIX).
	KeyPrefix string `yaml:"key_prefix"`
	// Headers of the answer, none by default.
	Headers DropInHeaders `yaml:"headers"`
}

// DropInHeaders are those about the limit of which the least is left, or that refused.
type DropInHeaders struct {
	// Enabled adds them (LIMIT_RESPONSE_HEADERS_ENABLED).
	Enabled bool `yaml:"enabled"`
	// Limit, Remaining and Reset are their names (LIMIT_LIMIT_HEADER,
	// LIMIT_REMAINING_HEADER, LIMIT_RESET_HEADER).
	Limit     string `yaml:"limit"`
	Remaining string `yaml:"remaining"`
	Reset     string `yaml:"reset"`
}

// defaultDropIn is envoyproxy/ratelimit's default.
func defaultDropIn() DropInConfig {
	return DropInConfig{Headers: DropInHeaders{Limit: "RateLimit-Limit", Remaining: "RateLimit-Remaining", Reset: "RateLimit-Reset"}}
}

// maxKeyPrefix bounds KeyPrefix in bytes.
const maxKeyPrefix = 256

func (c *DropInConfig) validate() (errs []error) {
	for key, name := range map[string]string{"limit": c.Headers.Limit, "remaining": c.Headers.Remaining, "reset": c.Headers.Reset} {
		if !httpguts.ValidHeaderFieldName(name) {
			errs = append(errs, fmt.Errorf("drop_in.headers.%s %q: is no name of a header", key, name))
		}
	}
	if len(c.KeyPrefix) > maxKeyPrefix {
		errs = append(errs, fmt.Errorf("drop_in.key_prefix: has more than %d bytes", maxKeyPrefix))
	}
	return errs
}

// onlyWhatIsOver has a request of which some limits are over, or would be, counted for
// those alone. The store is asked how they stand first, as envoyproxy/ratelimit does:
// of requests that come at the same time more may be counted.
func (s *Server) onlyWhatIsOver(ctx context.Context, now time.Time, d *decision) {
	asked := slices.Clone(d.uses)
	for i := range asked {
		asked[i].Op, asked[i].Hits = limit.Take, 0
	}
	outcomes := make([]limit.Outcome, len(asked))
	if s.store.Decide(ctx, now, asked, outcomes) != nil {
		return // the decision fails too
	}
	over := make([]bool, len(asked))
	for i, u := range d.uses {
		over[i] = u.Op == limit.Take && (outcomes[i].Over || u.Bounded() > uint64(outcomes[i].Remaining))
	}
	if !slices.Contains(over, true) {
		return
	}
	for i := range d.uses {
		if u := &d.uses[i]; u.Op == limit.Take && !over[i] {
			u.Hits = 0
		}
	}
}

// describe adds to an answer what envoyproxy/ratelimit would.
func (c *DropInConfig) describe(d *decision, req *rlsv3.RateLimitRequest, resp *rlsv3.RateLimitResponse) {
	if c.Headers.Enabled {
		c.Headers.add(d, resp)
	}
	if c.DynamicMetadata {
		resp.DynamicMetadata = d.metadata(req, resp)
	}
	if c.ShadowMode {
		resp.OverallCode = rlsv3.RateLimitResponse_OK
	}
}

// add describes the last limit that refused, else the first of which the least is left.
func (h *DropInHeaders) add(d *decision, resp *rlsv3.RateLimitResponse) {
	var about *rlsv3.RateLimitResponse_DescriptorStatus
	least := uint32(math.MaxUint32)
	for i, st := range resp.GetStatuses() {
		if d.items[i].use < 0 {
			continue
		}
		if st.GetLimitRemaining() < least {
			about, least = st, st.GetLimitRemaining()
		}
		if st.GetCode() == rlsv3.RateLimitResponse_OVER_LIMIT && !d.items[i].quota {
			about, least = st, 0
		}
	}
	if about == nil {
		return
	}
	for _, header := range []struct {
		name  string
		value int64
	}{
		{h.Limit, int64(about.GetCurrentLimit().GetRequestsPerUnit())},
		{h.Remaining, int64(about.GetLimitRemaining())},
		{h.Reset, about.GetDurationUntilReset().GetSeconds()},
	} {
		resp.ResponseHeadersToAdd = append(resp.ResponseHeadersToAdd, &corev3.HeaderValue{Key: header.name, Value: strconv.FormatInt(header.value, 10)})
	}
}

// metadata repeats the request, with the metadata of the limits that passed.
func (d *decision) metadata(req *rlsv3.RateLimitRequest, resp *rlsv3.RateLimitResponse) *structpb.Struct {
	out := &structpb.Struct{Fields: map[string]*structpb.Value{"domain": structpb.NewStringValue(req.GetDomain())}}
	list := &structpb.ListValue{}
	for _, desc := range req.GetDescriptors() {
		list.Values = append(list.Values, structpb.NewStructValue(descriptorMetadata(desc)))
	}
	out.Fields["descriptors"] = structpb.NewListValue(list)
	if n := req.GetHitsAddend(); n != 0 {
		out.Fields["hitsAddend"] = structpb.NewNumberValue(float64(n))
	}
	passed := &structpb.Struct{}
	for i, st := range resp.GetStatuses() {
		if st.GetCode() == rlsv3.RateLimitResponse_OK {
			merge(passed, d.items[i].metadata)
		}
	}
	if len(passed.GetFields()) > 0 {
		out.Fields["metadata"] = structpb.NewStructValue(passed)
	}
	return out
}

func descriptorMetadata(desc *commonv3.RateLimitDescriptor) *structpb.Struct {
	entries := &structpb.ListValue{}
	for _, e := range desc.GetEntries() {
		entries.Values = append(entries.Values, structpb.NewStringValue(e.GetKey()+"="+e.GetValue()))
	}
	out := &structpb.Struct{Fields: map[string]*structpb.Value{"entries": structpb.NewListValue(entries)}}
	if l := desc.GetLimit(); l != nil {
		out.Fields["limit"] = structpb.NewStringValue(l.String())
	}
	if n := desc.GetHitsAddend(); n != nil {
		out.Fields["hitsAddend"] = structpb.NewNumberValue(float64(n.GetValue()))
	}
	return out
}

// merge adds what is in from and not in to, and goes down where both have a struct.
// It changes nothing of from.
func merge(to, from *structpb.Struct) {
	for key, value := range from.GetFields() {
		have, taken := to.GetFields()[key]
		switch {
		case !taken:
			if to.Fields == nil {
				to.Fields = make(map[string]*structpb.Value)
			}
			if inner := value.GetStructValue(); inner != nil {
				own := &structpb.Struct{}
				merge(own, inner)
				value = structpb.NewStructValue(own)
			}
			to.Fields[key] = value
		case have.GetStructValue() != nil && value.GetStructValue() != nil:
			merge(have.GetStructValue(), value.GetStructValue())
		}
	}
}

// counterName names the callers of a domain's limits.
type counterName struct {
	domain string
	desc   *commonv3.RateLimitDescriptor
}

// Name implements toplist.Namer.
func (c counterName) Name(string) string {
	return c.domain + "?" + quota.WriteEntries(c.desc.GetEntries())
}
