package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// keptLimits is a ratelimit with one counter of 10 that remembers what it was told.
type keptLimits struct {
	ratelimitpb.UnimplementedLimitsServer
	told []string
	top  *ratelimitpb.ListTopRequest
}

func (k *keptLimits) counter(what string, r *ratelimitpb.ChangeCounterRequest, left uint32) (*ratelimitpb.Counter, error) {
	k.told = append(k.told, strings.TrimSpace(what+" "+r.String()))
	return &ratelimitpb.Counter{Key: r.GetKey(), Limit: "QuotaPolicy default/q limit 0", Requests: 10, Every: durationpb.New(time.Minute), Burst: 4, Remaining: left, Over: left == 0}, nil
}

func (k *keptLimits) GetCounter(_ context.Context, r *ratelimitpb.GetCounterRequest) (*ratelimitpb.Counter, error) {
	return k.counter("get", &ratelimitpb.ChangeCounterRequest{Key: r.GetKey()}, 0)
}

func (k *keptLimits) ResetCounter(_ context.Context, r *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error) {
	return k.counter("reset", r, 10)
}

func (k *keptLimits) Grant(_ context.Context, r *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error) {
	return k.counter("grant", r, r.GetHits())
}

func (k *keptLimits) Refund(_ context.Context, r *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error) {
	return k.counter("refund", r, r.GetHits())
}

func (k *keptLimits) ListTop(_ context.Context, r *ratelimitpb.ListTopRequest) (*ratelimitpb.ListTopResponse, error) {
	k.top = r
	return &ratelimitpb.ListTopResponse{Callers: []*ratelimitpb.TopCaller{{Key: "default/q/0?source.principal=a", Limit: "QuotaPolicy default/q limit 0", Hits: 12, Refused: 2}}}, nil
}

func (k *keptLimits) ListChanges(context.Context, *ratelimitpb.ListChangesRequest) (*ratelimitpb.ListChangesResponse, error) {
	return &ratelimitpb.ListChangesResponse{Changes: []*ratelimitpb.CounterChange{{
		At: timestamppb.New(time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)), Actor: "uid=0", What: "grant", Key: "default/q/0", Hits: 5, Reason: "ticket 7", Remaining: 1,
	}}}, nil
}

func TestLimits(t *testing.T) {
	kept := &keptLimits{}
	socket := adminServer(t, func(s *grpc.Server) { ratelimitpb.RegisterLimitsServer(s, kept) })
	const key = "default/q/0?source.principal=a"
	for _, c := range []struct {
		args []string
		want string // in the output, or in the error
		ok   bool
	}{
		{[]string{"get", key}, key + ": 0 of 10 in 1m0s, burst 4, are left, the next request is refused (QuotaPolicy default/q limit 0)", true},
		{[]string{"get", key, "-o", "json"}, `"remaining": 0`, true},
		{[]string{"reset", key, "--reason", "ticket 7"}, "10 of 10 in 1m0s, burst 4, are left, the next request passes", true},
		{[]string{"grant", key, "3", "--reason", "ticket 7"}, "3 of 10", true},
		{[]string{"refund", key, "4", "--reason", "ticket 7"}, "4 of 10", true},
		{[]string{"top", "--callers", "3", "--limit", "QuotaPolicy default"}, "QuotaPolicy default/q limit 0  12    2        0          " + key, true},
		{[]string{"changes"}, "2026-11-22 01:02:03  uid=0  grant  5     1            default/q/0  ticket 7", true},
		{[]string{"reset", key}, "--reason is missing", false},
		{[]string{"grant", key, "0", "--reason", "r"}, `"0": want a number`, false},
		{[]string{"grant", key, "-1", "--reason", "r"}, "unknown shorthand flag", false},
		{[]string{"refund", key, "x", "--reason", "r"}, `"x": want a number`, false},
		{[]string{"grant", key}, "name a counter and a number", false},
		{[]string{"get"}, "name a counter", false},
		{[]string{"raise"}, `unknown command "raise" of writ limits`, false},
	} {
		args := append([]string{"limits"}, c.args...)
		if c.args[0] != "raise" {
			args = append(args, "--admin", socket)
		}
		var stdout, stderr strings.Builder
		code := Main(args, &stdout, &stderr)
		if out := stdout.String() + stderr.String(); (code == 0) != c.ok || !strings.Contains(out, c.want) {
			t.Errorf("%q: exit code %d, %q, want %q", c.args, code, out, c.want)
		}
	}
	if kept.top.GetCallers() != 3 || kept.top.GetLimit() != "QuotaPolicy default" {
		t.Errorf("top was asked for %v", kept.top)
	}
	if len(kept.told) != 5 || !strings.Contains(kept.told[3], "ticket 7") {
		t.Errorf("told %q", kept.told)
	}
}
