package pilot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/revoked"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/pilot/tokens"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

const (
	// maxTokensAtOnce bounds the revocations of one call.
	maxTokensAtOnce = 1000
	// listedAtOnce is how many are listed in one message.
	listedAtOnce = 100
	// fedAtOnce is how many are in one message to authz, 36 bytes each.
	fedAtOnce = 20_000
	// maxQueued bounds the changes that wait for a watcher; one that is slower gets
	// everything anew.
	maxQueued = 10_000
)

// tokenFeed is the list of revoked tokens and who follows it.
type tokenFeed struct {
	// list is nil if nothing can be revoked, because there is no state directory.
	list *tokens.List

	// mu is held over a change of the list and telling of it, so that watchers hear
	// of changes in their order.
	mu       sync.Mutex
	watchers map[*tokenWatcher]struct{}
}

// tokenChange is a revocation, or one that was taken back.
type tokenChange struct {
	entry  revoked.Entry
	undone bool
}

type tokenWatcher struct {
	wake chan struct{}
	// queue and lost are under the feed's mu; lost says that the queue was too short.
	queue []tokenChange
	lost  bool
}

// add revokes, and remove takes back.
func (f *tokenFeed) add(rs []tokens.Revocation) ([]tokens.Revocation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := f.list.Add(rs)
	if err != nil {
		return nil, err
	}
	for _, r := range now {
		f.tell(tokenChange{entry: r.Entry()})
	}
	return now, nil
}

func (f *tokenFeed) remove(rs []tokens.Revocation) ([]tokens.Revocation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	gone, err := f.list.Remove(rs)
	for _, r := range gone {
		f.tell(tokenChange{entry: r.Entry(), undone: true})
	}
	return gone, err
}

// tell queues a change for all watchers. The caller holds mu.
func (f *tokenFeed) tell(c tokenChange) {
	for w := range f.watchers {
		if len(w.queue) >= maxQueued {
			w.queue, w.lost = nil, true
		}
		if !w.lost {
			w.queue = append(w.queue, c)
		}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// watch begins with everything.
func (f *tokenFeed) watch() *tokenWatcher {
	w := &tokenWatcher{wake: make(chan struct{}, 1), lost: true}
	w.wake <- struct{}{}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers == nil {
		f.watchers = map[*tokenWatcher]struct{}{}
	}
	f.watchers[w] = struct{}{}
	return w
}

func (f *tokenFeed) unwatch(w *tokenWatcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watchers, w)
}

// take gives what waits for w; everything says that it is to be sent everything
// first.
func (f *tokenFeed) take(w *tokenWatcher) (changes []tokenChange, everything bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changes, everything = w.queue, w.lost
	w.queue, w.lost = nil, false
	return changes, everything
}

// tokenRevocations is writ.pilot.v1.TokenRevocations.
type tokenRevocations struct {
	pilotpb.UnimplementedTokenRevocationsServer
	pilot *Pilot
}

func tokenAdminMethods() rpc.Methods {
	return rpc.Methods{
		pilotpb.TokenRevocations_RevokeTokens_FullMethodName:      rpc.SameUser(),
		pilotpb.TokenRevocations_UnrevokeTokens_FullMethodName:    rpc.SameUser(),
		pilotpb.TokenRevocations_ListRevokedTokens_FullMethodName: rpc.SameUser(),
		pilotpb.TokenRevocations_CheckToken_FullMethodName:        rpc.SameUser(),
	}
}

// RevokeTokens implements writ.pilot.v1.TokenRevocations.
func (s *tokenRevocations) RevokeTokens(ctx context.Context, req *pilotpb.RevokeTokensRequest) (*pilotpb.RevokeTokensResponse, error) {
	rs, err := s.requested(req.GetRevocations())
	if err != nil {
		return nil, err
	}
	now, actor := time.Now().UTC(), rpc.CallerFrom(ctx).String()
	for i := range rs {
		rs[i].Time, rs[i].Actor = now.Truncate(time.Second), actor
		if err := rs[i].Check(); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "revocation %d: %v", i+1, err)
		}
	}
	p, feed := s.pilot, s.pilot.tokensFeed
	if !p.authz && feed.list.Table.Len()+len(rs) > maxTold {
		return nil, status.Errorf(codes.FailedPrecondition, "more than %d revoked tokens need authz, and this mesh has none (deciders.authz)", maxTold)
	}
	resp := &pilotpb.RevokeTokensResponse{}
	for _, r := range rs {
		if old, there := feed.list.Table.Get(r.Key()); there && r.Entry().Widen(old) == old {
			resp.Already++
		}
	}
	if _, err := feed.add(rs); err != nil {
		p.log.ErrorContext(ctx, "tokens are not revoked", slog.Any("error", err))
		return nil, status.Error(codes.Unavailable, "it cannot be written down; nothing is revoked, try again")
	}
	p.wakeTokens()
	for _, r := range rs {
		p.log.InfoContext(ctx, "tokens revoked", tokenAttrs(r)...)
	}
	n := feed.list.Table.Len()
	resp.Total, resp.Remote = uint64(n), n > maxTold
	return resp, nil
}

// UnrevokeTokens implements writ.pilot.v1.TokenRevocations.
func (s *tokenRevocations) UnrevokeTokens(ctx context.Context, req *pilotpb.UnrevokeTokensRequest) (*pilotpb.UnrevokeTokensResponse, error) {
	rs, err := s.requested(req.GetRevocations())
	if err != nil {
		return nil, err
	}
	p, feed := s.pilot, s.pilot.tokensFeed
	for i := range rs {
		rs[i].IssuedBefore, rs[i].Until = time.Time{}, time.Time{}
		rs[i].Time, rs[i].Actor = time.Now().UTC().Truncate(time.Second), rpc.CallerFrom(ctx).String()
		if err := rs[i].Check(); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "revocation %d: %v", i+1, err)
		}
	}
	gone, err := feed.remove(rs)
	if err != nil {
		p.log.ErrorContext(ctx, "a revocation of tokens is not taken back as it should be", slog.Any("error", err))
		return nil, status.Error(codes.Unavailable, "it cannot be written down; see the list (writ revoke ls), and try again")
	}
	p.wakeTokens()
	resp := &pilotpb.UnrevokeTokensResponse{Total: uint64(feed.list.Table.Len())}
	for _, r := range gone {
		p.log.InfoContext(ctx, "tokens no longer revoked", tokenAttrs(r)...)
		resp.Revocations = append(resp.Revocations, tokenProto(r))
	}
	return resp, nil
}

// ListRevokedTokens implements writ.pilot.v1.TokenRevocations.
func (s *tokenRevocations) ListRevokedTokens(_ *pilotpb.ListRevokedTokensRequest, stream grpc.ServerStreamingServer[pilotpb.ListRevokedTokensResponse]) error {
	if s.pilot.tokensFeed.list == nil {
		return nil
	}
	out := &pilotpb.ListRevokedTokensResponse{}
	err := s.pilot.tokensFeed.list.Each(func(r tokens.Revocation) error {
		out.Revocations = append(out.Revocations, tokenProto(r))
		if len(out.Revocations) < listedAtOnce {
			return nil
		}
		full := out
		out = &pilotpb.ListRevokedTokensResponse{}
		return stream.Send(full)
	})
	if err == nil && len(out.Revocations) > 0 {
		err = stream.Send(out)
	}
	var damaged *tokens.DamagedError
	if errors.As(err, &damaged) {
		return status.Error(codes.DataLoss, err.Error())
	}
	return err
}

// CheckToken implements writ.pilot.v1.TokenRevocations.
func (s *tokenRevocations) CheckToken(_ context.Context, req *pilotpb.CheckTokenRequest) (*pilotpb.CheckTokenResponse, error) {
	if s.pilot.tokensFeed.list == nil {
		return &pilotpb.CheckTokenResponse{}, nil // nothing can be revoked
	}
	reason := s.pilot.tokensFeed.list.Table.Check(revoked.Token{
		Issuer: req.GetIssuer(), Subject: req.GetSub(), ID: req.GetJti(), IssuedAt: req.GetIssuedAt(), HasIssuedAt: req.IssuedAt != nil,
	})
	return &pilotpb.CheckTokenResponse{Reason: string(reason)}, nil
}

// requested reads what a request names.
func (s *tokenRevocations) requested(in []*pilotpb.TokenRevocation) ([]tokens.Revocation, error) {
	if s.pilot.tokensFeed.list == nil {
		return nil, status.Error(codes.FailedPrecondition, "pilot has no state directory (state) to keep revocations in")
	}
	if len(in) == 0 || len(in) > maxTokensAtOnce {
		return nil, status.Errorf(codes.InvalidArgument, "%d revocations: want 1 to %d", len(in), maxTokensAtOnce)
	}
	out := make([]tokens.Revocation, len(in))
	for i, r := range in {
		out[i] = tokens.Revocation{Issuer: r.GetIssuer(), ID: r.GetJti(), Subject: r.GetSub()}
		for _, t := range []struct {
			in *timestamppb.Timestamp
			to *time.Time
		}{{r.GetIssuedBefore(), &out[i].IssuedBefore}, {r.GetUntil(), &out[i].Until}} {
			if t.in == nil {
				continue
			}
			if err := t.in.CheckValid(); err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "revocation %d: %v", i+1, err)
			}
			if *t.to = t.in.AsTime(); t.to.Nanosecond() != 0 {
				return nil, status.Errorf(codes.InvalidArgument, "revocation %d: %s is not a whole second", i+1, t.to.Format(time.RFC3339Nano))
			}
		}
	}
	return out, nil
}

func tokenProto(r tokens.Revocation) *pilotpb.TokenRevocation {
	stamp := func(t time.Time) *timestamppb.Timestamp {
		if t.IsZero() {
			return nil
		}
		return timestamppb.New(t)
	}
	return &pilotpb.TokenRevocation{
		Issuer: r.Issuer, Jti: r.ID, Sub: r.Subject, IssuedBefore: stamp(r.IssuedBefore), Until: stamp(r.Until),
		RevokedAt: stamp(r.Time), Actor: r.Actor,
	}
}

// tokenAttrs is what the log has of a revocation. A jti is no secret: without its
// signature it gives no access.
func tokenAttrs(r tokens.Revocation) []any {
	return []any{
		slog.String("issuer", r.Issuer), slog.String("jti", r.ID), slog.String("sub", r.Subject),
		slog.Time("issued_before", r.IssuedBefore), slog.Time("until", r.Until), slog.String("actor", r.Actor),
	}
}

// wakeTokens has what is revoked told to proxies.
func (p *Pilot) wakeTokens() {
	select {
	case p.tokensChanged <- struct{}{}:
	default:
	}
}

// tokenRevocationFeed is writ.pilot.v1.TokenRevocationFeed.
type tokenRevocationFeed struct {
	pilotpb.UnimplementedTokenRevocationFeedServer
	pilot *Pilot
}

func tokenFeedMethods() rpc.Methods {
	return rpc.Methods{pilotpb.TokenRevocationFeed_WatchRevokedTokens_FullMethodName: rpc.AnyService(identity.Authz)}
}

// WatchRevokedTokens implements writ.pilot.v1.TokenRevocationFeed.
func (s *tokenRevocationFeed) WatchRevokedTokens(_ *pilotpb.WatchRevokedTokensRequest, stream grpc.ServerStreamingServer[pilotpb.WatchRevokedTokensResponse]) error {
	feed := s.pilot.tokensFeed
	w := feed.watch()
	defer feed.unwatch(w)
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case <-s.pilot.xds.Stopped():
			return nil
		case <-w.wake:
		}
		changes, everything := feed.take(w)
		if everything {
			if err := feed.sendAll(stream); err != nil {
				return err
			}
		}
		if len(changes) == 0 {
			continue
		}
		// In their order, since one key may be in several.
		out := &pilotpb.WatchRevokedTokensResponse{}
		for i, c := range changes {
			if c.undone {
				out.Deleted = append(out.Deleted, c.entry.Key[:])
			} else {
				out.Put = append(out.Put, entryProto(c.entry))
			}
			if i == len(changes)-1 || changes[i+1].undone != c.undone {
				out.Complete = i == len(changes)-1
				if err := stream.Send(out); err != nil {
					return err
				}
				out = &pilotpb.WatchRevokedTokensResponse{}
			}
		}
	}
}

// sendAll sends the table as it is now; changes meanwhile are in it or follow.
func (f *tokenFeed) sendAll(stream grpc.ServerStreamingServer[pilotpb.WatchRevokedTokensResponse]) error {
	out := &pilotpb.WatchRevokedTokensResponse{Begin: true}
	if f.list != nil {
		for e := range f.list.Table.All() {
			out.Put = append(out.Put, entryProto(e))
			if len(out.Put) == fedAtOnce {
				if err := stream.Send(out); err != nil {
					return fmt.Errorf("send: %w", err)
				}
				out = &pilotpb.WatchRevokedTokensResponse{}
			}
		}
	}
	out.Complete = true
	return stream.Send(out)
}

func entryProto(e revoked.Entry) *pilotpb.RevokedTokenEntry {
	return &pilotpb.RevokedTokenEntry{Key: e.Key[:], Before: e.Before, Until: e.Until}
}
