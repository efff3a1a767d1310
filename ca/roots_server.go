package ca

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/roots"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// maxHolds bounds how many holds an operator is told; the metric counts them all.
const maxHolds = 1000

// rootsServer implements writ.ca.v1.Roots.
type rootsServer struct {
	capb.UnimplementedRootsServer

	a *Authority
}

// GetRoots implements writ.ca.v1.Roots.
func (s *rootsServer) GetRoots(ctx context.Context, _ *capb.GetRootsRequest) (*capb.RootsStatus, error) {
	st, err := s.fresh(ctx)
	s.audit(ctx, "GetRoots", err)
	return st, err
}

// WatchRoots implements writ.ca.v1.Roots.
func (s *rootsServer) WatchRoots(_ *capb.WatchRootsRequest, stream grpc.ServerStreamingServer[capb.RootsStatus]) error {
	ctx := stream.Context()
	_, err := s.fresh(ctx)
	s.audit(ctx, "WatchRoots", err)
	if err != nil {
		return err
	}
	var sent *capb.RootsStatus
	for {
		st, changed := s.a.keeper.tell()
		if !proto.Equal(st, sent) {
			if err := stream.Send(st); err != nil {
				return err
			}
			sent = st
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.a.keeper.stopped:
			return refuse(unavailable, "the authority is stopping; connect again")
		}
	}
}

// RotateRoot implements writ.ca.v1.Roots.
func (s *rootsServer) RotateRoot(ctx context.Context, req *capb.RotateRootRequest) (*capb.RootsStatus, error) {
	how := roots.How{Force: req.GetForce(), Compromised: req.GetCompromised(), Manual: req.GetManual()}
	var to []string // nil for all
	if named := req.GetReplicas(); len(named) > 0 {
		to = named
	}
	err := s.a.keeper.rotateTo(ctx, administrator(ctx), how, to)
	s.audit(ctx, "RotateRoot", err, slog.Bool("force", how.Force), slog.Bool("compromised", how.Compromised), slog.Bool("manual", how.Manual), slog.Any("replicas", to))
	return s.after(ctx, err)
}

// AbortRotation implements writ.ca.v1.Roots.
func (s *rootsServer) AbortRotation(ctx context.Context, _ *capb.AbortRotationRequest) (*capb.RootsStatus, error) {
	err := s.a.keeper.abort(ctx, administrator(ctx))
	s.audit(ctx, "AbortRotation", err)
	return s.after(ctx, err)
}

// after answers a call that changed something, or should have.
func (s *rootsServer) after(ctx context.Context, err error) (*capb.RootsStatus, error) {
	switch {
	case err == nil:
		return s.fresh(ctx)
	case errors.Is(err, ledger.ErrUnavailable), errors.Is(err, ledger.ErrConflict):
		return nil, refuse(unavailable, "the state of the roots cannot be written at the moment; see the authority's log").because(err)
	case errors.Is(err, roots.ErrRefused):
		return nil, refuse(unfit, "%v", err)
	}
	// Whoever may call this may read the authority's files too.
	return nil, refuse(internal, "%v", err)
}

// fresh reads the ledger and gives the status of now.
func (s *rootsServer) fresh(ctx context.Context) (*capb.RootsStatus, error) {
	if err := s.a.keeper.look(ctx); err != nil {
		return nil, refuse(internal, "the ledger cannot be read; see the authority's log").because(err)
	}
	st, _ := s.a.keeper.tell()
	return st, nil
}

func (s *rootsServer) audit(ctx context.Context, method string, err error, attrs ...slog.Attr) {
	(&admin{a: s.a}).audit(ctx, method, err, attrs...)
}

// look judges the gate anew, without going on.
func (k *keeper) look(ctx context.Context) error {
	t := k.a.trusted()
	facts, err := k.facts(ctx, t)
	if err == nil {
		k.note(t.state, roots.Gate(t.state, facts, k.now()), facts.Leaves)
	}
	return err
}

// tell gives the status, and a channel that is closed when there is a newer one.
func (k *keeper) tell() (*capb.RootsStatus, <-chan struct{}) {
	k.statusMu.Lock()
	defer k.statusMu.Unlock()
	st := k.status
	out := &capb.RootsStatus{
		Sequence: k.a.bundleProto(k.a.trusted()).GetSequence(),
		Rotation: rotationProto(st.state.Rotation, st.gate, k.problem), Last: rotationProto(st.state.Last, nil, nil),
	}
	if k.outsideProblem != nil {
		out.Problem = k.outsideProblem.Error()
	}
	for _, a := range st.state.Authorities {
		live := st.live[a.KeyID]
		out.Roots = append(out.Roots, &capb.Root{
			KeyId: a.KeyID, Certificate: a.Certificate, Active: a.KeyID == st.state.Active, Live: live.count, LiveUntil: stamp(live.until),
		})
	}
	return out, k.told
}

func rotationProto(r *roots.Rotation, gate []roots.Hold, problem error) *capb.Rotation {
	if r == nil {
		return nil
	}
	out := &capb.Rotation{
		Step: stepProto(r.Step), OldRoot: r.Old, NewRoot: r.New, StartedAt: stamp(r.StartedAt), StepSince: stamp(r.Since), StartedBy: r.StartedBy,
		Force: r.Force, Compromised: r.Compromised, Manual: r.Manual, Gate: holdsProto(gate), Skipped: holdsProto(r.Skipped),
	}
	if problem != nil {
		out.Problem = problem.Error()
	}
	return out
}

func stepProto(s roots.Step) capb.RotationStep {
	switch s {
	case roots.Distributing:
		return capb.RotationStep_ROTATION_STEP_DISTRIBUTING
	case roots.Draining:
		return capb.RotationStep_ROTATION_STEP_DRAINING
	case roots.Done:
		return capb.RotationStep_ROTATION_STEP_DONE
	case roots.Aborted:
		return capb.RotationStep_ROTATION_STEP_ABORTED
	}
	return capb.RotationStep_ROTATION_STEP_UNSPECIFIED
}

func holdsProto(holds []roots.Hold) []*capb.Hold {
	out := make([]*capb.Hold, 0, min(len(holds), maxHolds))
	for _, h := range slices.Clip(holds[:min(len(holds), maxHolds)]) {
		out = append(out, &capb.Hold{Holder: h.Holder, Reason: h.Reason, Proxies: h.Proxies, Since: stamp(h.Since), Until: stamp(h.Until)})
	}
	return out
}

// stamp is nil for the zero time.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
