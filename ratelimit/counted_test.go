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
	told := func(index int) string {
		t.Helper()
		c, err := a.GetCounter(t.Context(), &ratelimitpb.GetCounterRequest{Key: fmt.Sprintf("default/q/%d", index)})
		if err != nil {
			t.Fatal(err)
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
	s.inMemory = true
	if got := told(1); !strings.Contains(got, "in the memory of this replica") {
		t.Errorf("without Redis it is counted %s", got)
	}
}
