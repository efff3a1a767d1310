package security

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	quotav3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// assigner stands for ratelimit: it remembers the counters that it heard of and
// lets nothing pass of any.
type assigner struct {
	quotav3.UnimplementedRateLimitQuotaServiceServer

	mu       sync.Mutex
	counters []string
}

func (a *assigner) StreamRateLimitQuotas(stream quotav3.RateLimitQuotaService_StreamRateLimitQuotasServer) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the proxy has gone
		}
		out := &quotav3.RateLimitQuotaResponse{}
		for _, u := range r.GetBucketQuotaUsages() {
			name := u.GetBucketId().GetBucket()[configpb.QuotaCounterKey]
			a.mu.Lock()
			if !slices.Contains(a.counters, name) {
				a.counters = append(a.counters, name)
			}
			a.mu.Unlock()
			out.BucketAction = append(out.BucketAction, &quotav3.RateLimitQuotaResponse_BucketAction{
				BucketId: u.GetBucketId(),
				BucketAction: &quotav3.RateLimitQuotaResponse_BucketAction_QuotaAssignmentAction_{QuotaAssignmentAction: &quotav3.RateLimitQuotaResponse_BucketAction_QuotaAssignmentAction{
					AssignmentTimeToLive: durationpb.New(time.Minute),
					RateLimitStrategy:    &typev3.RateLimitStrategy{Strategy: &typev3.RateLimitStrategy_BlanketRule_{BlanketRule: typev3.RateLimitStrategy_DENY_ALL}},
				}},
			})
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

func (a *assigner) heard() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.counters)
}

func (a *assigner) serve(t testing.TB) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	quotav3.RegisterRateLimitQuotaServiceServer(s, a)
	done := make(chan struct{})
	go func() { _ = s.Serve(l); close(done) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return "unix://" + l.Addr().String()
}

// TestAssignedQuotaLive: a proxy keeps assigned limits by itself, each caller's under a
// name that it cannot choose, and holds to whenUnavailable while ratelimit is away.
func TestAssignedQuotaLive(t *testing.T) {
	t.Parallel()
	assigned := func(dims ...model.Dimension) model.QuotaLimit {
		l := per(dims...)
		l.Mode = configpb.QuotaAssigned
		return l
	}
	constant := model.Dimension{Text: "50%&x=1", Kind: "constant", Arg: "50%&x=1"}
	limits := []model.QuotaLimit{assigned(dim("source.principal"), dim("source.namespace"), constant), assigned()}
	eachEnvoy(t, func(t *testing.T, bin string) {
		build := func(address string, pols ...*model.QuotaPolicy) inbound {
			m := newMesh(t, "")
			m.Deciders.RateLimit, m.QuotaPolicies = address, pols
			return inbound{http: compileHTTP(t, m, workload()), mtls: true}
		}
		server := &assigner{}
		observed := quotaPolicy("o", false, assigned())
		observed.Observe = true
		gone := "unix://" + filepath.Join(t.TempDir(), "gone")
		p := start(t, bin, map[string]inbound{"in": build(server.serve(t), quotaPolicy("q", false, limits...), observed)})
		for _, c := range []struct{ identity, principal string }{
			{"", "-&source.namespace=-"},
			{curlFoo, "cluster.local/ns/foo/sa/curl&source.namespace=foo"},
			{"spiffe://cluster.local/ns/foo/sa/a&source.namespace=b", "-&source.namespace=foo"},
		} {
			name := "default/q/0?source.principal=" + c.principal + "&50%25%26x%3d1=50%25%26x%3d1"
			before := len(server.heard())
			proctest.Eventually(t, 20*time.Second, func() error {
				got := p.do("in", request{identity: c.identity})
				for _, name := range []string{name, "default/q/1"} { // the latter from the first request on
					if !slices.Contains(server.heard(), name) {
						return fmt.Errorf("%s is not among %q", name, server.heard())
					}
				}
				// The caller's own limit refuses as soon as its assignment is there, before that the other.
				if got.status != 429 || got.deniedBy != "QuotaPolicy default/q limit 0" {
					return fmt.Errorf("status %d by %q", got.status, got.deniedBy)
				}
				return nil
			})
			got := p.do("in", request{identity: c.identity})
			if got.status != 429 || got.header.Get("retry-after") != "5" || got.deniedBy != "QuotaPolicy default/q limit 0" {
				t.Errorf("refused with %d, retry-after %q, by %q", got.status, got.header.Get("retry-after"), got.deniedBy)
			}
			if before > 0 && len(server.heard()) != before+1 {
				t.Errorf("%q has more than one new counter", server.heard())
			}
		}
		if heard := server.heard(); slices.ContainsFunc(heard, func(s string) bool { return strings.HasPrefix(s, "default/o/") }) {
			t.Errorf("heard of %q", heard)
		}
		away := start(t, bin, map[string]inbound{
			"open": build(gone, quotaPolicy("q", false, assigned())), "closed": build(gone, quotaPolicy("c", true, assigned())),
		})
		if got := away.do("open", request{}); got.status != 200 {
			t.Errorf("ratelimit away, open: %d", got.status)
		}
		if got := away.do("closed", request{}); got.status != 429 || got.deniedBy != "QuotaPolicy default/c limit 0" {
			t.Errorf("ratelimit away, closed: %d, by %q", got.status, got.deniedBy)
		}
	})
}
