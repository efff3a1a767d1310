package ratelimit

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

// costing is a limit with a cost; without a reservation requests pass if anything is left.
func costing(requests, reserve uint32) *configpb.Limit {
	l := per(requests, time.Minute)
	l.Cost = &configpb.Cost{Reserve: reserve}
	if reserve > 0 {
		l.Cost.Expire = durationpb.New(10 * time.Second)
	}
	return l
}

// begin is what an Envoy asks before a request of ann with that name, over what it
// tells once the request has cost hits.
func begin(name string) *commonv3.RateLimitDescriptor {
	return desc("writ.policy", "default/q", "writ.limit", "0", "writ.hold", name, "source.principal", "ann")
}

func over(name string, hits uint64) *commonv3.RateLimitDescriptor {
	d := desc("writ.policy", "default/q", "writ.limit", "0", "writ.hold", name, "writ.done", "1", "source.principal", "ann")
	d.HitsAddend = wrapperspb.UInt64(hits)
	return d
}

func TestCostAfterTheFact(t *testing.T) {
	s, c, reg := newServer(t)
	withQuotas(t, s, policy("q", false, costing(10, 0)))
	ask0 := desc("writ.policy", "default/q", "writ.limit", "0", "source.principal", "ann")
	done := func(hits uint64) *commonv3.RateLimitDescriptor {
		d := desc("writ.policy", "default/q", "writ.limit", "0", "writ.done", "1", "source.principal", "ann")
		d.HitsAddend = wrapperspb.UInt64(hits)
		return d
	}
	wantAnswer(t, "asking takes nothing", ask(t, s, "writ", ask0), "OK | OK 10 of 10/minute 0s\nx-ratelimit-limit: 10, 10;w=60\nx-ratelimit-remaining: 10\nx-ratelimit-reset: 0")
	wantAnswer(t, "the cost is taken, and nobody reads headers", ask(t, s, "writ", done(7)), "OK | OK 3 of 10/minute 1m0s")
	ask(t, s, "writ", ask0)
	wantAnswer(t, "fits or not", ask(t, s, "writ", done(1<<40)), "OK | OK 0 of 10/minute 1m0s")
	if resp := ask(t, s, "writ", ask0); resp.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Errorf("in debt: %s", answer(resp))
	}
	c.now = c.now.Add(time.Minute)
	if resp := ask(t, s, "writ", ask0); resp.GetOverallCode() != rlsv3.RateLimitResponse_OK {
		t.Errorf("a window later: %s", answer(resp))
	}
	if got := metric(t, reg, "writ_ratelimit_cost_total", "QuotaPolicy default/q limit 0"); got < 7 {
		t.Errorf("cost_total is %v", got)
	}
}

// TestReservation: what is reserved counts until it is settled, and by itself no longer
// once its time is over, whoever crashed.
func TestReservation(t *testing.T) {
	s, c, reg := newServer(t)
	withQuotas(t, s, policy("q", false, costing(100, 40)))
	remaining := func(d *commonv3.RateLimitDescriptor) uint32 {
		t.Helper()
		return ask(t, s, "writ", d).GetStatuses()[0].GetLimitRemaining()
	}
	for i, want := range []uint32{60, 20} {
		if got := remaining(begin(fmt.Sprint(i))); got != want {
			t.Fatalf("reservation %d leaves %d, want %d", i, got, want)
		}
	}
	if resp := ask(t, s, "writ", begin("2")); resp.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Errorf("a third reservation: %s", answer(resp))
	}
	if got := remaining(over("0", 5)); got != 55 { // 5 taken, 40 held
		t.Errorf("settled: %d left, want 55", got)
	}
	if got := remaining(over("0", 5)); got != 55 {
		t.Errorf("settled twice: %d left, want 55", got)
	}
	if got := remaining(over("nobody's", 50)); got != 55 {
		t.Errorf("a name that nobody has: %d left, want 55", got)
	}
	if got := metric(t, reg, "writ_ratelimit_settled_void_total"); got != 2 {
		t.Errorf("settled_void_total is %v, want 2", got)
	}
	c.now = c.now.Add(10 * time.Second) // the second one's Envoy is gone
	if got := remaining(begin("3")); got != 55 {
		t.Errorf("after the reservation's time: %d left, want 95-40", got)
	}
	if got := remaining(over("3", 200)); got != 0 {
		t.Errorf("more than was reserved: %d left, want 0", got)
	}
	c.now = c.now.Add(time.Minute)
	if got := remaining(begin("4")); got != 60 {
		t.Errorf("a window later: %d left, want 60", got)
	}
}

// TestTenThousandRacingSettlements: of so many that end one reservation at once one
// counts, and none gives back more than was held.
func TestTenThousandRacingSettlements(t *testing.T) {
	const racers, names = 10_000, 4
	s, _, _ := newServer(t)
	withQuotas(t, s, policy("q", false, costing(100, 20)))
	for n := range names {
		ask(t, s, "writ", begin(fmt.Sprint(n)))
	}
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range racers / 16 {
				req := &rlsv3.RateLimitRequest{Domain: "writ", Descriptors: []*commonv3.RateLimitDescriptor{over(fmt.Sprint((worker+i)%names), 3)}}
				resp, err := s.ShouldRateLimit(t.Context(), req)
				if err != nil {
					t.Error(err)
					return
				}
				if left := resp.GetStatuses()[0].GetLimitRemaining(); left > 100-3 {
					t.Errorf("%d are left of 100", left)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := ask(t, s, "writ", over("nobody's", 0)).GetStatuses()[0].GetLimitRemaining(); got != 100-3*names {
		t.Errorf("%d are left, want %d: 3 for each of %d requests", got, 100-3*names, names)
	}
}

// TestNobodyFreesHimself: what a workload may ask never gives it back what it took.
func TestNobodyFreesHimself(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, policy("q", false, costing(10, 5)), policy("plain", false, per(2, time.Minute)))
	ask(t, s, "writ", begin("mine"))
	ask(t, s, "writ", over("mine", 10))
	ask(t, s, "writ", quotaDesc("plain", 0, "ann"), quotaDesc("plain", 0, "ann"))
	negative := func(d *commonv3.RateLimitDescriptor) *commonv3.RateLimitDescriptor {
		d.IsNegativeHits = true
		return d
	}
	override := quotaDesc("plain", 0, "ann")
	override.Limit = &commonv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 1000, Unit: 1}
	doneOf := desc("writ.policy", "default/plain", "writ.limit", "0", "writ.done", "1", "source.principal", "ann")
	for _, d := range []*commonv3.RateLimitDescriptor{
		negative(over("mine", 10)), negative(over("other", 10)), over("mine", 0), over("", 0), over("other", 0), negative(begin("mine")),
		negative(quotaDesc("plain", 0, "ann")), override, doneOf, negative(doneOf),
	} {
		ask(t, s, "writ", d)
	}
	for _, d := range []*commonv3.RateLimitDescriptor{begin("next"), quotaDesc("plain", 0, "ann")} {
		if resp := ask(t, s, "writ", d); resp.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT {
			t.Errorf("after all of that: %s", answer(resp))
		}
	}
}

// TestEachLimitIsDescribed: of three limits the headers are about the one that refused,
// whichever it is.
func TestEachLimitIsDescribed(t *testing.T) {
	for refusing, want := range []string{
		"x-ratelimit-limit: 3, 3;w=1, 9;w=60, 9;w=3600\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 1\nretry-after: 1\nx-writ-denied-by: QuotaPolicy default/q limit 0",
		"x-ratelimit-limit: 3, 3;w=60, 9;w=1, 9;w=3600\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 60\nretry-after: 60\nx-writ-denied-by: QuotaPolicy default/q limit 1",
		"x-ratelimit-limit: 3, 3;w=3600, 9;w=1, 9;w=60\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 3600\nretry-after: 3600\nx-writ-denied-by: QuotaPolicy default/q limit 2",
	} {
		s, _, _ := newServer(t)
		limits := []*configpb.Limit{per(9, time.Second), per(9, time.Minute), per(9, time.Hour)}
		limits[refusing].Requests = 3
		withQuotas(t, s, policy("q", false, limits...))
		all := []*commonv3.RateLimitDescriptor{quotaDesc("q", 0, "a"), quotaDesc("q", 1, "a"), quotaDesc("q", 2, "a")}
		for range 3 {
			ask(t, s, "writ", all...)
		}
		resp := ask(t, s, "writ", all...)
		resp.Statuses = nil
		wantAnswer(t, fmt.Sprint("limit ", refusing), resp, "OVER\n"+want)
	}
}

// TestAloneIsSaid: while the shared store is away answers say that this replica decided
// by itself.
func TestAloneIsSaid(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, policy("q", false, per(2, time.Minute)))
	alone := false
	s.alone = func(time.Time, []limit.Use) bool { return alone }
	for i, want := range []string{"", "local", "local", ""} {
		alone = want != ""
		got := ""
		for _, h := range ask(t, s, "writ", quotaDesc("q", 0, "a")).GetResponseHeadersToAdd() {
			if h.GetKey() == "x-writ-quota" {
				got = h.GetValue()
			}
		}
		if got != want {
			t.Errorf("answer %d: x-writ-quota %q, want %q", i, got, want)
		}
	}
}

// TestSeriesAreBounded: of tens of thousands of callers of many limits few have a series,
// and they are those that ask most.
func TestSeriesAreBounded(t *testing.T) {
	s, c, _ := newServer(t)
	reg := prometheus.NewRegistry()
	reg.MustRegister(topCollector{&s.top, c.Now})
	var limits []*configpb.Limit
	for range 20 {
		limits = append(limits, per(math.MaxUint32, time.Hour))
	}
	withQuotas(t, s, policy("a", false, limits...), policy("b", false, limits...))
	for n := range 40_000 {
		caller := fmt.Sprint("quiet", n)
		if n%4 == 0 {
			caller = fmt.Sprint("loud", n/160%10)
		}
		ask(t, s, "writ", quotaDesc([]string{"a", "b"}[n/4%2], n/8%20, caller))
	}
	families, err := reg.Gather()
	if err != nil || len(families) != 1 {
		t.Fatal(families, err)
	}
	series := families[0].GetMetric()
	if len(series) != 2*20*topCallers {
		t.Errorf("%d series", len(series))
	}
	for _, m := range series {
		if caller := m.GetLabel()[0].GetValue(); !strings.Contains(caller, "?source.principal=loud") {
			t.Errorf("%s is among those that ask most", caller)
		}
	}
}
