package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/internal/pkitest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// rotator is an authority whose rotation, once begun, has a held gate, and then
// ends as the test says.
type rotator struct {
	capb.UnimplementedRootsServer
	old, next *pkitest.Root
	ends      capb.RotationStep

	mu    sync.Mutex
	asked []*capb.RotateRootRequest
	st    *capb.RootsStatus
}

func newRotator(t *testing.T, ends capb.RotationStep) *rotator {
	r := &rotator{old: pkitest.NewRoot(t, "cluster.local"), next: pkitest.NewRoot(t, "cluster.local"), ends: ends}
	r.st = &capb.RootsStatus{Sequence: 1, Roots: []*capb.Root{{KeyId: "0123456789abcdef", Certificate: r.old.Cert.Raw, Active: true, Live: 3, LiveUntil: timestamppb.New(time.Now().Add(time.Hour))}}}
	return r
}

func (r *rotator) GetRoots(context.Context, *capb.GetRootsRequest) (*capb.RootsStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.st, nil
}

func (r *rotator) RotateRoot(_ context.Context, req *capb.RotateRootRequest) (*capb.RootsStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, req)
	r.st = &capb.RootsStatus{
		Sequence: 2,
		Roots:    append(r.st.GetRoots()[:1:1], &capb.Root{KeyId: "fedcba9876543210", Certificate: r.next.Cert.Raw}),
		Rotation: &capb.Rotation{
			Step: capb.RotationStep_ROTATION_STEP_DISTRIBUTING, OldRoot: "0123456789abcdef", NewRoot: "fedcba9876543210", StartedAt: timestamppb.Now(), StartedBy: "admin uid=0",
			Gate: []*capb.Hold{{Holder: "spiffe://cluster.local/writ/node/n1", Reason: "has not acknowledged bundle 2", Proxies: []string{"sidecar~127.0.0.1~reviews-1.default~x"}, Until: timestamppb.Now()}},
		},
	}
	return r.st, nil
}

func (r *rotator) AbortRotation(context.Context, *capb.AbortRotationRequest) (*capb.RootsStatus, error) {
	return nil, status.Error(codes.FailedPrecondition, "no rotation is under way")
}

// WatchRoots ends once, as with an authority that is started anew.
func (r *rotator) WatchRoots(_ *capb.WatchRootsRequest, s grpc.ServerStreamingServer[capb.RootsStatus]) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.st.GetRotation() == nil {
		return s.Send(r.st)
	}
	if err := s.Send(r.st); err != nil {
		return err
	}
	last := r.st.GetRotation()
	last.Step, last.Gate = r.ends, nil
	r.st = &capb.RootsStatus{Sequence: 3, Roots: r.st.GetRoots()[1:], Last: last}
	return status.Error(codes.Unavailable, "stopping")
}

func TestRoots(t *testing.T) {
	r := newRotator(t, capb.RotationStep_ROTATION_STEP_DONE)
	socket := adminServer(t, func(s *grpc.Server) { capb.RegisterRootsServer(s, r) })
	for _, tc := range []struct {
		args string
		code int
		want []string
	}{
		{"roots", 0, []string{"0123456789ab  yes", "3  "}},
		{"roots abort", 1, []string{"writ: no rotation is under way"}},
		{"roots a b", 2, []string{"name one mesh directory"}},
		{"roots rotate", 0, []string{"fedcba987654  no", "waiting for 1:", "spiffe://cluster.local/writ/node/n1 has not acknowledged bundle 2: reviews-1.default (its certificate expires at "}},
		{"roots rotate --manual --force", 0, []string{"waiting for 1:"}},
		{"roots rotate --compromised --watch", 0, []string{"is handed out", "reviews-1.default", "the new root fedcba987654 signs, the old one is dropped"}},
	} {
		var out bytes.Buffer
		code := Main(append(strings.Fields(tc.args), "--admin", socket), &out, &out)
		if code != tc.code {
			t.Errorf("%s: exit code %d, want %d:\n%s", tc.args, code, tc.code, &out)
		}
		for _, want := range tc.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: want %q in:\n%s", tc.args, want, &out)
			}
		}
	}
	if len(r.asked) != 3 || !r.asked[1].GetManual() || !r.asked[1].GetForce() || r.asked[0].GetForce() || !r.asked[2].GetCompromised() {
		t.Errorf("asked for %v", r.asked)
	}
	var out bytes.Buffer
	if code := Main([]string{"roots", "-o", "json", "--admin", socket}, &out, &out); code != 0 {
		t.Fatalf("exit code %d: %s", code, &out)
	}
	var got rootStatus
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got.Roots) != 1 || got.Last == nil || got.Last.Step != "done" || got.Rotation != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	out.Reset()
	if code := Main([]string{"roots", "--admin", "tcp://x"}, &out, &out); code != 2 || !strings.Contains(out.String(), "unix:///absolute/path") {
		t.Errorf("exit code %d: %s", code, &out)
	}
}

func TestWatchedRotationIsAborted(t *testing.T) {
	r := newRotator(t, capb.RotationStep_ROTATION_STEP_ABORTED)
	socket := adminServer(t, func(s *grpc.Server) { capb.RegisterRootsServer(s, r) })
	var out bytes.Buffer
	if code := Main([]string{"roots", "rotate", "--watch", "--admin", socket}, &out, &out); code != 1 || !strings.Contains(out.String(), "was taken out again") {
		t.Errorf("exit code %d: %s", code, &out)
	}
}
