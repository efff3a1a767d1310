package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// liveStatus is a pilot with a mesh in which all is well.
type liveStatus struct {
	pilotpb.UnimplementedStatusServer
}

func (liveStatus) GetStatus(context.Context, *pilotpb.GetStatusRequest) (*pilotpb.GetStatusResponse, error) {
	return &pilotpb.GetStatusResponse{Serving: 3, Revisions: []*pilotpb.Revision{{Number: 3, State: pilotpb.RevisionState_REVISION_STATE_LIVE}}}, nil
}

// declaring is a ratelimit with limits that are counted in several ways.
type declaring struct {
	ratelimitpb.UnimplementedLimitsServer
}

func (declaring) ListLimits(context.Context, *ratelimitpb.ListLimitsRequest) (*ratelimitpb.ListLimitsResponse, error) {
	return &ratelimitpb.ListLimitsResponse{Limits: []*ratelimitpb.DeclaredLimit{
		{Limit: "QuotaPolicy default/reviews limit 0", Counted: "exactly: no more than the limit passes (while Redis is away, by each replica alone: n replicas let pass n times the limit)"},
		{Limit: "QuotaPolicy default/reviews limit 1", Counted: "by each replica alone: n replicas let pass n times the limit"},
	}}, nil
}

// TestStatusDeclaresQuotas: writ status tells people and programs how much more than its
// limits a policy lets pass at worst, and says so if ratelimit does not tell it.
func TestStatusDeclaresQuotas(t *testing.T) {
	status := func(ratelimit func(*grpc.Server)) func(args ...string) string {
		dir := t.TempDir()
		run, err := json.Marshal(stack.Ready{Admin: map[string]string{
			"pilot":     adminServer(t, func(s *grpc.Server) { pilotpb.RegisterStatusServer(s, liveStatus{}) }),
			"ratelimit": adminServer(t, ratelimit),
		}})
		if err != nil {
			t.Fatal(err)
		}
		state := filepath.Join(dir, ".writ")
		if err := os.Mkdir(state, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(state, "run.json"), run, 0o600); err != nil {
			t.Fatal(err)
		}
		return func(args ...string) string {
			t.Helper()
			var out strings.Builder
			if code := Main(append([]string{"status", dir}, args...), &out, &out); code != 0 {
				t.Errorf("exit code %d", code)
			}
			return out.String()
		}
	}
	tells := status(func(s *grpc.Server) { ratelimitpb.RegisterLimitsServer(s, declaring{}) })
	const want = `
QUOTAS (where they are counted, and how much passes at worst)
  QuotaPolicy default/reviews limit 0: counted exactly: no more than the limit passes (while Redis is away, by each replica alone: n replicas let pass n times the limit)
  QuotaPolicy default/reviews limit 1: counted by each replica alone: n replicas let pass n times the limit
`
	if got := tells(); !strings.Contains(got, want) {
		t.Errorf("status is\n%s\nwant in it\n%s", got, want)
	}
	var parsed struct {
		Quotas []struct{ Limit, Counted string }
	}
	if err := json.Unmarshal([]byte(tells("-o", "json")), &parsed); err != nil || len(parsed.Quotas) != 2 ||
		parsed.Quotas[1].Limit != "QuotaPolicy default/reviews limit 1" || parsed.Quotas[1].Counted != "by each replica alone: n replicas let pass n times the limit" {
		t.Errorf("%+v, %v", parsed, err)
	}
	silent := status(func(s *grpc.Server) {
		ratelimitpb.RegisterLimitsServer(s, ratelimitpb.UnimplementedLimitsServer{})
	})
	if got := silent(); strings.Contains(got, "QUOTAS") || !strings.Contains(got, "ratelimit does not tell how its limits are counted") {
		t.Errorf("status is\n%s", got)
	}
	page, err := os.ReadFile("../../../../docs/quotas.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), strings.TrimSpace(want)) {
		t.Errorf("the page has another example than\n%s", want)
	}
}
