package ratelimit

import (
	"context"
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/rpc"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

const (
	// maxActor bounds what another region says of its operator, maxProblem what it says
	// of what it did not do, in bytes.
	maxActor   = 200
	maxProblem = 300
)

// elsewhere tells what became of a change here, and makes it in the other regions if
// that is asked for: hits are given back in one after the other until all are.
func (a *admin) elsewhere(ctx context.Context, done *changed) []*ratelimitpb.RegionPart {
	own, part := a.server.regions.Region(done.counter.use.Limit)
	if done.counter.use.Mode == limit.Local {
		part = done.counter.use.Limit.Requests()
	}
	parts := []*ratelimitpb.RegionPart{{Region: own, Requests: part, Remaining: done.state.GetRemaining(), Given: done.given}}
	if !done.AllRegions {
		return parts
	}
	rest := done.Hits - done.given
	for _, name := range a.server.regions.Others() {
		if done.What != changeReset && rest == 0 {
			break
		}
		resp, err := a.server.regions.Change(ctx, name, &ratelimitpb.ChangeRequest{
			Counter: done.Counter, What: done.What, Hits: rest, Reason: done.Reason, Actor: cut(done.Actor, maxActor),
		})
		one := &ratelimitpb.RegionPart{Region: name, Requests: resp.GetRequests(), Remaining: resp.GetRemaining(), Given: min(resp.GetGiven(), rest)}
		parts = append(parts, one)
		rest -= one.GetGiven()
		if err == nil {
			continue
		}
		one.Problem = printable(status.Convert(err).Message())
		switch {
		case refused(err):
		case done.What == changeReset:
			one.Problem += "; it may be changed all the same"
		default:
			one.Problem += "; what it may have given back is not given back elsewhere"
			return parts
		}
	}
	return parts
}

// refused says that a call with this error surely changed nothing.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.FailedPrecondition, codes.InvalidArgument, codes.NotFound, codes.Unimplemented:
		return true
	default:
		return false
	}
}

// printable is what may be shown on a terminal of what another region says.
func printable(text string) string {
	return cut(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text), maxProblem)
}

func cut(text string, most int) string {
	return strings.ToValidUTF8(text[:min(len(text), most)], "")
}

// changeForRegion makes a change for an operator of another region, which may ask for it.
func (s *Service) changeForRegion(ctx context.Context, r *ratelimitpb.ChangeRequest) (*ratelimitpb.ChangeResponse, error) {
	if s.admin == nil {
		return nil, status.Error(codes.FailedPrecondition, "ratelimit has no admin socket here, and so no audit")
	}
	return s.admin.changeForRegion(ctx, r)
}

func (a *admin) changeForRegion(ctx context.Context, r *ratelimitpb.ChangeRequest) (*ratelimitpb.ChangeResponse, error) {
	switch what := r.GetWhat(); {
	case what != changeReset && what != changeGrant && what != changeRefund:
		return nil, status.Error(codes.InvalidArgument, "a change is a reset, a grant or a refund")
	case (what == changeReset) != (r.GetHits() == 0):
		return nil, status.Error(codes.InvalidArgument, "a grant or a refund needs a number of hits, a reset has none")
	case len(r.GetActor()) > maxActor || printable(r.GetActor()) != r.GetActor():
		return nil, status.Errorf(codes.InvalidArgument, "an actor has at most %d bytes that can be printed", maxActor)
	}
	done, err := a.make(ctx, change{
		Actor: fmt.Sprintf("%s, region %s, for %s", rpc.CallerFrom(ctx), cut(r.GetRegion(), maxActor), r.GetActor()),
		What:  r.GetWhat(), Counter: r.GetCounter(), Hits: r.GetHits(), Reason: r.GetReason(),
	})
	if err != nil {
		return nil, err
	}
	part := a.elsewhere(ctx, done)[0]
	return &ratelimitpb.ChangeResponse{Given: part.GetGiven(), Remaining: part.GetRemaining(), Requests: part.GetRequests()}, nil
}
