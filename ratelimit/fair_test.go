package ratelimit

import (
	"strings"
	"testing"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// sharedPolicy has 160 in a minute for all namespaces together; payments has weight 3.
func sharedPolicy() *configpb.QuotaPolicy {
	l := per(160, time.Minute)
	l.Per = []string{"source.namespace"}
	l.Fair = &configpb.QuotaFair{Weights: map[string]uint32{"payments": 3}}
	return policy("shared", false, l)
}

func askFor(t *testing.T, s *Server, namespace string, times int) (passed int, last *rlsv3.RateLimitResponse) {
	t.Helper()
	for range times {
		d := desc("writ.policy", "default/shared", "writ.limit", "0", "source.namespace", namespace)
		if last = ask(t, s, configpb.QuotaDomain, d); last.GetOverallCode() == rlsv3.RateLimitResponse_OK {
			passed++
		}
	}
	return passed, last
}

// TestFairIsNotLent: a region that asks for hits of a limit that is shared fairly gets
// none, and of others some.
func TestFairIsNotLent(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, sharedPolicy(), policy("q", false, per(4, time.Hour)))
	if u, err := s.toLend("default/shared/0?source.namespace=a"); err == nil {
		t.Errorf("%+v is lent", u)
	}
	if _, err := s.toLend("default/q/0?source.principal=a"); err != nil {
		t.Error(err)
	}
}

// TestTenantsShareALimit: one that floods leaves something to others, and when the
// window is over they have parts by their weights; answers, metrics and the list of who
// asks most speak of the tenant.
func TestTenantsShareALimit(t *testing.T) {
	s, c, _ := newServer(t)
	withQuotas(t, s, sharedPolicy())
	passed, last := askFor(t, s, "flood", 400)
	if passed != 150 {
		t.Errorf("one alone got %d of 160, want 150", passed)
	}
	if st := last.GetStatuses()[0]; len(last.GetStatuses()) != 1 || st.GetLimitRemaining() != 0 || st.GetCode() != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Errorf("its last answer: %v", last.GetStatuses())
	}
	if got, _ := askFor(t, s, "payments", 400); got != 10 {
		t.Errorf("another one got %d of the 10 that were left", got)
	}
	c.now = c.now.Add(63 * time.Second)
	flood, _ := askFor(t, s, "flood", 400)
	payments, _ := askFor(t, s, "payments", 400)
	if flood != 37 || payments != 112 {
		t.Errorf("a window later they got %d and %d of 160, want 37 and 112", flood, payments)
	}
	if got, _ := askFor(t, s, "small", 5); got != 5 {
		t.Errorf("a third one got %d of the 5 that it asked for", got)
	}
	top := s.top.Top(s.now(), 3, func(string) bool { return true })
	if len(top) != 3 || !strings.HasSuffix(top[0].Name, "?source.namespace=flood") && !strings.HasSuffix(top[0].Name, "?source.namespace=payments") {
		t.Errorf("who asks most: %+v", top)
	}
}

// TestOperatorsOfASharedLimit: what one tenant used is seen and forgotten by its name,
// and what is forgotten is free for all.
func TestOperatorsOfASharedLimit(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, sharedPolicy())
	a := newAdmin(t, s, t.TempDir())
	askFor(t, s, "flood", 200)
	const flood, small = "default/shared/0?source.namespace=flood", "default/shared/0?source.namespace=small"
	left := func(key string) uint32 {
		got, err := a.GetCounter(t.Context(), &ratelimitpb.GetCounterRequest{Key: key})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetRemaining()
	}
	if got := left(flood); got != 0 {
		t.Errorf("the flood has %d left", got)
	}
	if got := left(small); got != 10 {
		t.Errorf("others have %d left, want 10", got)
	}
	if _, err := a.Grant(t.Context(), &ratelimitpb.ChangeCounterRequest{Key: flood, Hits: 20, Reason: "r"}); err != nil {
		t.Fatal(err)
	}
	if a, b := left(flood), left(small); a != 20 || b != 30 {
		t.Errorf("after 20 were granted %d and %d are left", a, b)
	}
	if _, err := a.ResetCounter(t.Context(), &ratelimitpb.ChangeCounterRequest{Key: flood, Reason: "r"}); err != nil {
		t.Fatal(err)
	}
	if got := left(small); got < 150 {
		t.Errorf("after a reset %d of 160 are left to others", got)
	}
}
