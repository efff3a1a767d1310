package ratelimit

import (
	"fmt"
	"testing"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const dropInOptions = `
domain: d
descriptors:
- {key: a, rate_limit: {unit: minute, requests_per_unit: 2}, metadata: {team: {name: x}, n: 1}}
- {key: b, rate_limit: {unit: hour, requests_per_unit: 3}, metadata: {team: {mail: y}, n: 2}}
- {key: q, quota_mode: true, rate_limit: {unit: minute, requests_per_unit: 1}}
- {key: r, quota_mode: true, rate_limit: {unit: minute, requests_per_unit: 2}}
- {key: free, rate_limit: {unlimited: true}}
`

// after is a server with these options after so many requests with the keys.
func after(t *testing.T, c DropInConfig, times int, keys ...string) *rlsv3.RateLimitResponse {
	t.Helper()
	s, _, _ := newServer(t)
	s.dropIn = c
	withDescriptors(t, s, dropInOptions)
	var descs []*commonv3.RateLimitDescriptor
	for _, k := range keys {
		descs = append(descs, desc(k, "v"))
	}
	var resp *rlsv3.RateLimitResponse
	for range times {
		resp = ask(t, s, "d", descs...)
	}
	return resp
}

func TestDropInHeaders(t *testing.T) {
	c := defaultDropIn()
	wantAnswer(t, "none by default", after(t, c, 1, "a"), "OK | OK 1 of 2/minute 1m0s")
	c.Headers.Enabled = true
	header := func(limit, remaining, reset int) string {
		return fmt.Sprintf("\nRateLimit-Limit: %d\nRateLimit-Remaining: %d\nRateLimit-Reset: %d", limit, remaining, reset)
	}
	for _, w := range []struct {
		name  string
		times int
		keys  []string
		want  string
	}{
		{"the least", 1, []string{"b", "a"}, "OK | OK 2 of 3/hour 1h0m0s | OK 1 of 2/minute 1m0s" + header(2, 1, 60)},
		{"the one that refuses", 3, []string{"a", "b"}, "OVER | OVER 0 of 2/minute 1m0s | OK 0 of 3/hour 1h0m0s" + header(2, 0, 60)},
		{"the last of two that refuse", 4, []string{"a", "b"}, "OVER | OVER 0 of 2/minute 1m0s | OVER 0 of 3/hour 1h0m0s" + header(3, 0, 3600)},
		{"nothing is limited", 1, []string{"free", "none"}, "OK | OK 4294967295 | OK 0"},
		{"a quota that is over and one that is not", 2, []string{"q", "r"}, "OK | OVER 0 of 1/minute 1m0s | OK 0 of 2/minute 1m0s" + header(1, 0, 60)},
		{"both quotas", 3, []string{"q", "r"}, "OVER | OVER 0 of 1/minute 1m0s | OVER 0 of 2/minute 1m0s" + header(1, 0, 60)},
	} {
		wantAnswer(t, w.name, after(t, c, w.times, w.keys...), w.want)
	}
	c.Headers.Limit, c.Headers.Remaining, c.Headers.Reset = "L", "M", "R"
	wantAnswer(t, "other names", after(t, c, 1, "a"), "OK | OK 1 of 2/minute 1m0s\nL: 2\nM: 1\nR: 60")
}

func TestDropInModes(t *testing.T) {
	shadow, quota := defaultDropIn(), defaultDropIn()
	shadow.ShadowMode, quota.QuotaMode = true, true
	wantAnswer(t, "shadow mode", after(t, shadow, 3, "a"), "OK | OVER 0 of 2/minute 1m0s")
	wantAnswer(t, "quota mode, one is left", after(t, quota, 3, "a", "b"), "OK | OVER 0 of 2/minute 1m0s | OK 0 of 3/hour 1h0m0s")
	wantAnswer(t, "quota mode, none is left", after(t, quota, 4, "a", "b"), "OVER | OVER 0 of 2/minute 1m0s | OVER 0 of 3/hour 1h0m0s")
	wantAnswer(t, "quota mode, one that nothing limits", after(t, quota, 4, "a", "none"), "OK | OVER 0 of 2/minute 1m0s | OK 0")
	wantAnswer(t, "quota mode, an unlimited one", after(t, quota, 4, "a", "free"), "OVER | OVER 0 of 2/minute 1m0s | OK 4294967295")
}

func TestDropInMetadata(t *testing.T) {
	c := defaultDropIn()
	if got := after(t, c, 1, "a").GetDynamicMetadata(); got != nil {
		t.Errorf("metadata by default: %v", got)
	}
	c.DynamicMetadata = true
	for i, want := range []string{
		`{"domain":"d","descriptors":[{"entries":["a=v"]},{"entries":["b=v"]}],"metadata":{"n":1,"team":{"name":"x","mail":"y"}}}`,
		`{"domain":"d","descriptors":[{"entries":["a=v"]},{"entries":["b=v"]}],"metadata":{"n":2,"team":{"mail":"y"}}}`,
		`{"domain":"d","descriptors":[{"entries":["a=v"]},{"entries":["b=v"]}]}`,
	} {
		wanted := &structpb.Struct{}
		if err := protojson.Unmarshal([]byte(want), wanted); err != nil {
			t.Fatal(err)
		}
		got := after(t, c, []int{1, 3, 4}[i], "a", "b").GetDynamicMetadata()
		if diff := cmp.Diff(wanted, got, protocmp.Transform()); diff != "" {
			t.Errorf("%d (-want +got):\n%s", i, diff)
		}
	}
}

// TestRefunds: is_negative_hits gives back, and never more than was taken.
func TestRefunds(t *testing.T) {
	s, _, _ := newServer(t)
	withDescriptors(t, s, dropInOptions)
	hits := func(n uint64, negative bool) *commonv3.RateLimitDescriptor {
		d := desc("b", "v")
		d.HitsAddend, d.IsNegativeHits = wrapperspb.UInt64(n), negative
		return d
	}
	for i, c := range []struct {
		hits     uint64
		negative bool
		want     string
	}{
		{5, false, "OVER | OVER 0"}, {3, true, "OK | OK 1"}, {1, false, "OK | OK 0"}, {1000, true, "OK | OK 3"}, {3, false, "OK | OK 0"}, {1, false, "OVER | OVER 0"},
	} {
		wantAnswer(t, fmt.Sprint("step ", i), ask(t, s, "d", hits(c.hits, c.negative)), c.want+" of 3/hour 1h0m0s")
	}
}

func TestKeyPrefix(t *testing.T) {
	s, _, _ := newServer(t)
	withDescriptors(t, s, dropInOptions)
	for i, prefix := range []string{"", "one:", "two:"} {
		s.dropIn.KeyPrefix = prefix
		if got := ask(t, s, "d", desc("a", "v")).GetStatuses()[0].GetLimitRemaining(); got != 1 {
			t.Errorf("prefix %d has the counter of another", i)
		}
	}
}

// TestStopWhenOver: with several limits a refused request counts for those alone that
// are over, as envoyproxy/ratelimit has it with STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT.
func TestStopWhenOver(t *testing.T) {
	c := defaultDropIn()
	c.StopWhenOver = true
	wantAnswer(t, "both pass", after(t, c, 2, "a", "b"), "OK | OK 0 of 2/minute 1m0s | OK 1 of 3/hour 1h0m0s")
	for n := 3; n < 6; n++ {
		wantAnswer(t, "one is over", after(t, c, n, "a", "b"), "OVER | OVER 0 of 2/minute 1m0s | OK 1 of 3/hour 1h0m0s")
	}
	wantAnswer(t, "and counted without", after(t, defaultDropIn(), 3, "a", "b"), "OVER | OVER 0 of 2/minute 1m0s | OK 0 of 3/hour 1h0m0s")
	s, _, _ := newServer(t)
	s.dropIn = c
	withDescriptors(t, s, dropInOptions)
	a, b := desc("a", "v"), desc("b", "v")
	b.HitsAddend = wrapperspb.UInt64(4)
	wantAnswer(t, "more than there is", ask(t, s, "d", a, b), "OVER | OK 2 of 2/minute 1m0s | OVER 0 of 3/hour 1h0m0s")
	wantAnswer(t, "is counted", ask(t, s, "d", desc("b", "v")), "OVER | OVER 0 of 3/hour 1h0m0s")
	wantAnswer(t, "the other was not", ask(t, s, "d", a), "OK | OK 1 of 2/minute 1m0s")
}
