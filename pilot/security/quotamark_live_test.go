package security

import (
	"path/filepath"
	"testing"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// patient makes Envoy wait for ratelimit as long as a machine that is busy with other
// tests may take.
func patient(t *testing.T, in inbound) inbound {
	t.Helper()
	for _, f := range in.http.Filters {
		config := &ratelimitv3.RateLimit{}
		if !f.GetTypedConfig().MessageIs(config) {
			continue
		}
		if err := f.GetTypedConfig().UnmarshalTo(config); err != nil {
			t.Fatal(err)
		}
		config.Timeout = durationpb.New(20 * time.Second)
		config.RateLimitService.GrpcService.Timeout = config.Timeout
		f.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: envoy.Any(config)}
	}
	return in
}

// TestQuotaMarkLive: an answer says that its quotas were not asked, and says nothing if
// they were, if there are none to refuse, or if it is a refusal.
func TestQuotaMarkLive(t *testing.T) {
	t.Parallel()
	const deny = "kind: AuthorizationPolicy\nmetadata: {name: d}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/no]}}]}]}"
	observed := quotaPolicy("o", false, per())
	observed.Observe = true
	eachEnvoy(t, func(t *testing.T, bin string) {
		build := func(address string, pols ...*model.QuotaPolicy) inbound {
			m := newMesh(t, deny)
			m.Deciders.RateLimit, m.QuotaPolicies = address, pols
			return inbound{http: compileHTTP(t, m, workload())}
		}
		here, gone := (&decider{limitHeader: "5, 5;w=60"}).serve(t), "unix://"+filepath.Join(t.TempDir(), "gone")
		p := start(t, bin, map[string]inbound{"here": patient(t, build(here, quotaPolicy("q", false, per()))), "none": build(here)})
		away := start(t, bin, map[string]inbound{
			"away": build(gone, quotaPolicy("q", false, per())), "observed": build(gone, observed), "closed": build(gone, quotaPolicy("q", true, per())), "none": build(gone),
		})
		for _, c := range []struct {
			p    *proxy
			in   string
			path string
			want string
		}{
			{p, "here", "/", ""},
			{p, "none", "/", ""},
			{p, "here", "/no", ""},
			{away, "away", "/", "unavailable"},
			{away, "away", "/no", ""},
			{away, "observed", "/", ""},
			{away, "closed", "/", ""},
			{away, "none", "/", ""},
		} {
			got := c.p.do(c.in, request{path: c.path})
			if values := got.header.Values("x-writ-quota"); len(values) > 1 || got.header.Get("x-writ-quota") != c.want || len(values) == 1 && c.want == "" {
				t.Errorf("%s%s: status %d, x-writ-quota %q, want %q", c.in, c.path, got.status, values, c.want)
			}
		}
		if got := p.do("here", request{}); got.header.Get("x-ratelimit-limit") != "5, 5;w=60" {
			t.Errorf("headers of ratelimit: %v", got.header)
		}
	})
}
