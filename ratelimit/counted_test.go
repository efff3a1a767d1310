package ratelimit

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// TestOperatorsAreToldWhereItIsCounted: each limit declares how much more than it may
// pass at worst.
func TestOperatorsAreToldWhereItIsCounted(t *testing.T) {
	s, _, _ := newServer(t)
	in := func(mode string, requests uint32, every time.Duration) *configpb.Limit {
		return &configpb.Limit{Requests: requests, Every: durationpb.New(every), Mode: mode}
	}
	withQuotas(t, s, policy("q", false, in("", 5, time.Minute), in("leased", 10_000, time.Hour), in("leased", 5, time.Hour), in("local", 5, time.Hour)))
	a := newAdmin(t, s, t.TempDir())
	told := func(index int) string { // of a counter, and of the policy
		t.Helper()
		all, err := a.ListLimits(t.Context(), &ratelimitpb.ListLimitsRequest{})
		if err != nil || len(all.GetLimits()) <= index || all.GetLimits()[index].GetLimit() != fmt.Sprintf("QuotaPolicy default/q limit %d", index) {
			t.Fatalf("%v, %v", all, err)
		}
		c, err := a.GetCounter(t.Context(), &ratelimitpb.GetCounterRequest{Key: fmt.Sprintf("default/q/%d", index)})
		if err != nil {
			t.Fatal(err)
		}
		if declared := all.GetLimits()[index].GetCounted(); declared != c.GetCounted() {
			t.Errorf("limit %d is declared to be counted %s, and its counter %s", index, declared, c.GetCounted())
		}
		return c.GetCounted()
	}
	for i, want := range []string{
		"exactly: no more than the limit", "hold for 3m45s: no more than the limit passes, and up to 1/17 less", "too small to be leased", "n replicas let pass n times",
	} {
		if got := told(i); !strings.Contains(got, want) {
			t.Errorf("limit %d is counted %s, want %q", i, got, want)
		}
	}
	if got := told(0); !strings.Contains(got, "while Redis is away, by each replica alone: n replicas let pass n times the limit") || strings.Contains(got, "proxies") {
		t.Errorf("limit 0 is counted %s", got)
	}
	local := policy("q", false, in("", 5, time.Minute))
	local.Told = true // whenUnavailable: Local
	withQuotas(t, s, local)
	if got := told(0); !strings.Contains(got, "n proxies let pass n times the limit besides") {
		t.Errorf("with whenUnavailable: Local it is counted %s", got)
	}
	withQuotas(t, s, policy("q", false, in("", 5, time.Minute), in("leased", 10_000, time.Hour)))
	s.inMemory = true
	if got := told(1); !strings.Contains(got, "in the memory of this replica") {
		t.Errorf("without Redis it is counted %s", got)
	}
}
