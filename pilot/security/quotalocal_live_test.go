package security

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

func localPolicy(name string, limits ...model.QuotaLimit) *model.QuotaPolicy {
	p := quotaPolicy(name, false, limits...)
	p.FailLocal = true
	return p
}

// TestQuotaLocalLive: while ratelimit does not answer the Envoy counts by itself, each
// caller for itself, never lets more pass than the limit, and says so; what ratelimit
// answers for it does not count.
func TestQuotaLocalLive(t *testing.T) {
	t.Parallel()
	four := model.QuotaLimit{Requests: 4, Every: time.Hour, Per: []model.Dimension{dim("request.headers[who]"), {Text: "k", Kind: "constant", Arg: "k"}}}
	all := model.QuotaLimit{Requests: 9, Every: 2 * time.Hour}
	burst := model.QuotaLimit{Requests: 3, Every: time.Hour, Burst: 3, Algorithm: configpb.QuotaGCRA}
	posts := localPolicy("q", four)
	posts.Match = []model.QuotaMatch{{Methods: []string{"POST"}}}
	both := []*model.QuotaPolicy{localPolicy("q", four), quotaPolicy("r", false, per())}
	eachEnvoy(t, func(t *testing.T, bin string) {
		build := func(address string, pols ...*model.QuotaPolicy) inbound {
			m := newMesh(t, "")
			m.Deciders.RateLimit, m.QuotaPolicies = address, pols
			return inbound{http: compileHTTP(t, m, workload())}
		}
		gone := "unix://" + filepath.Join(t.TempDir(), "gone")
		away := start(t, bin, map[string]inbound{
			"each": build(gone, localPolicy("q", four)), "two": build(gone, localPolicy("q", four, all), localPolicy("r", burst)), "burst": build(gone, localPolicy("q", burst)),
			"posts": build(gone, posts), "both": build(gone, both...), "closed": build(gone, localPolicy("q", four), quotaPolicy("r", true, per())),
		})
		for _, c := range []struct {
			in, who, method string
			pass, of        int
			says            string
		}{
			{"each", "a", "GET", 2, 5, "proxy"},
			{"each", "b", "GET", 2, 3, "proxy"},
			{"each", "", "GET", 2, 3, "proxy"},
			{"burst", "a", "GET", 3, 5, "proxy"},
			{"two", "a", "GET", 2, 3, "proxy"},
			{"posts", "a", "GET", 4, 4, ""},
			{"posts", "a", "POST", 2, 4, "proxy"},
			{"both", "a", "GET", 2, 3, "unavailable"},
		} {
			for i := range c.of {
				got := away.do(c.in, request{method: c.method, header: map[string]string{"who": c.who}})
				status, says := http.StatusOK, c.says
				if i >= c.pass {
					status, says = http.StatusTooManyRequests, "proxy"
				}
				if got.status != status || got.header.Get(openHeader) != says {
					t.Errorf("%s: request %d of %s: %d, %s %q, want %d, %q", c.in, i, c.who, got.status, openHeader, got.header.Get(openHeader), status, says)
				}
				if got.status == 429 && (!strings.HasPrefix(got.deniedBy, "QuotaPolicy default/q") || !strings.HasSuffix(got.deniedBy, " (ratelimit does not answer)") || got.header.Get("retry-after") == "") {
					t.Errorf("%s: refused by %q, retry-after %q", c.in, got.deniedBy, got.header.Get("retry-after"))
				}
			}
		}
		if got := away.do("closed", request{}); got.status != 503 {
			t.Errorf("beside a closed policy: %d", got.status)
		}
		stats, err := get(away.admin + "/stats?filter=quota_local.*enforced")
		if err != nil || !strings.Contains(stats, "quota_local.http_local_rate_limit.enforced: 11\n") {
			t.Errorf("counted %s, %v", stats, err)
		}
		here := (&decider{tells: true, limitHeader: "4, 4;w=3600"}).serve(t)
		p := start(t, bin, map[string]inbound{"in": patient(t, build(here, both...))})
		for i := range 4 {
			for who, pass := range map[string]bool{"known": true, "lost": i < 2} {
				got := p.do("in", request{header: map[string]string{"who": who}})
				if (got.status == 200) != pass || pass && got.header.Get(openHeader) != "" {
					t.Errorf("%s: request %d: %d, %s %q", who, i, got.status, openHeader, got.header.Get(openHeader))
				}
			}
		}
	})
}

// TestLocalBucket: in no stretch of the window does a bucket let more pass than the
// limit does.
func TestLocalBucket(t *testing.T) {
	for _, requests := range []uint32{1, 2, 3, 10, 1000, 1 << 31, 1<<32 - 1} {
		for _, every := range []time.Duration{time.Millisecond, 7 * time.Millisecond, 50 * time.Millisecond, 51 * time.Millisecond, time.Second, 87600 * time.Hour} {
			for _, burst := range []uint32{0, 1, requests} {
				l := model.QuotaLimit{Requests: requests, Every: every, Burst: burst}
				most := uint64(requests)
				if burst > 0 {
					l.Algorithm = configpb.QuotaGCRA
					most += uint64(burst) - 1
				}
				bucket, each := localBucket(l)
				if got := atMost(bucket, every); got > most || got == 0 || each < 0 {
					t.Errorf("%d per %s, burst %d: at most %d pass, %v", requests, every, burst, got, bucket)
				}
				if fill := bucket.GetFillInterval().AsDuration(); fill%localFill != 0 || bucket.GetTokensPerFill().GetValue() == 0 {
					t.Errorf("%d per %s: fills %v", requests, every, bucket)
				}
			}
		}
	}
}

// atMost is how many pass in less than a window: what is there, and what comes in.
func atMost(b *typev3.TokenBucket, window time.Duration) uint64 {
	more := float64(b.GetTokensPerFill().GetValue()) * float64(window) / float64(b.GetFillInterval().AsDuration())
	return uint64(b.GetMaxTokens()) + uint64(max(more-1, 0)+0.5)
}
