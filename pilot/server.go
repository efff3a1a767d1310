package pilot

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/peercred"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/pilot/revision"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// adsMethods lists who may take configuration; identify decides what each gets.
func adsMethods(allow rpc.Allow) rpc.Methods {
	return rpc.Methods{
		discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName:  allow,
		discoveryv3.AggregatedDiscoveryService_StreamAggregatedResources_FullMethodName: allow,
	}
}

// ServeADS serves node agents and services over mTLS until ctx ends. It returns
// early with an error only if it cannot start.
func (p *Pilot) ServeADS(ctx context.Context, addr string, cfg credential.Config, rt *service.Runtime) error {
	rt.Health.Register("listen")
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return fmt.Errorf("credential: trust_domain: %w", err)
	}
	id, err := identity.Service(td, identity.Pilot)
	if err != nil {
		return err
	}
	l, err := rpc.Listen(addr)
	if err != nil {
		return err
	}
	source, err := credential.New(ctx, cfg, id, rt.Log)
	if err != nil {
		_ = l.Close()
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopped while waiting
		}
		return fmt.Errorf("credential: %w", err)
	}
	methods := adsMethods(rpc.Or(rpc.AnyNode(), rpc.AnyService(identity.CA, identity.Authz, identity.RateLimit)))
	maps.Copy(methods, tokenFeedMethods())
	maps.Copy(methods, keySetsMethods())
	s := rpc.NewServer(source.ServerCredentials(), methods, rt)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, p.xds)
	pilotpb.RegisterTokenRevocationFeedServer(s, &tokenRevocationFeed{pilot: p})
	pilotpb.RegisterKeySetsServer(s, &keySetsService{pilot: p})
	if err := rpc.CheckMethods(s, methods); err != nil {
		_ = l.Close()
		return err
	}
	p.followRevocations(source)
	rt.Health.Set("listen", nil)
	return service.RunTasks(ctx, source.Run, func(ctx context.Context) error { return rpc.Serve(ctx, s, l) })
}

// ServePlaintext serves any xDS client on a loopback address until ctx ends.
func (p *Pilot) ServePlaintext(ctx context.Context, addr string, rt *service.Runtime) error {
	if err := listen.Loopback(addr); err != nil {
		return fmt.Errorf("plaintext: %w", err)
	}
	return serve(ctx, addr, insecure.NewCredentials(), adsMethods(rpc.Anyone()), rt, func(s *grpc.Server) {
		discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, plaintext{p.xds})
	})
}

// ServeAdmin serves the status to the user that runs pilot until ctx ends.
func (p *Pilot) ServeAdmin(ctx context.Context, addr string, rt *service.Runtime) error {
	methods := rpc.Methods{
		pilotpb.Status_GetStatus_FullMethodName:   rpc.SameUser(),
		pilotpb.Status_WatchStatus_FullMethodName: rpc.SameUser(),
	}
	maps.Copy(methods, tokenAdminMethods())
	maps.Copy(methods, configurationMethods())
	return serve(ctx, addr, peercred.Credentials(), methods, rt, func(s *grpc.Server) {
		pilotpb.RegisterStatusServer(s, &statusService{pilot: p})
		pilotpb.RegisterTokenRevocationsServer(s, &tokenRevocations{pilot: p})
		pilotpb.RegisterConfigurationServer(s, &configurationService{pilot: p})
	})
}

func serve(ctx context.Context, addr string, creds credentials.TransportCredentials, methods rpc.Methods, rt *service.Runtime, register func(*grpc.Server)) error {
	l, err := rpc.Listen(addr)
	if err != nil {
		return err
	}
	s := rpc.NewServer(creds, methods, rt)
	register(s)
	if err := rpc.CheckMethods(s, methods); err != nil {
		_ = l.Close()
		return err
	}
	return rpc.Serve(ctx, s, l)
}

// statusService is writ.pilot.v1.Status.
type statusService struct {
	pilotpb.UnimplementedStatusServer
	pilot *Pilot
}

// GetStatus returns the state of the files as they are.
func (s *statusService) GetStatus(ctx context.Context, _ *pilotpb.GetStatusRequest) (*pilotpb.GetStatusResponse, error) {
	s.pilot.catchUp(ctx)
	st, _ := s.pilot.status()
	return st, nil
}

// catchUpMost is how long a status waits for files that keep changing.
const catchUpMost = 5 * time.Second

// catchUp waits until the files have been read as they are: who writes a file and asks
// at once means what he wrote, and the watch lets files come to rest first.
func (p *Pilot) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, catchUpMost)
	defer cancel()
	for {
		p.mu.Lock()
		read, changed := p.stamp, p.changed
		p.mu.Unlock()
		if p.source.Stamp() == read {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-p.xds.Stopped():
			return
		case <-changed:
		}
	}
}

// statusPause is the least time between two messages of WatchStatus: a thousand
// clients that acknowledge make a few messages, not a thousand.
const statusPause = 20 * time.Millisecond

// WatchStatus sends the state of the files as they are, and after every change.
func (s *statusService) WatchStatus(_ *pilotpb.WatchStatusRequest, stream grpc.ServerStreamingServer[pilotpb.GetStatusResponse]) error {
	s.pilot.catchUp(stream.Context())
	for {
		st, changed := s.pilot.status()
		if err := stream.Send(st); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-s.pilot.xds.Stopped():
			return nil
		case <-changed:
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-time.After(statusPause):
		}
	}
}

// status is the state now, and a channel that is closed when it changes.
func (p *Pilot) status() (*pilotpb.GetStatusResponse, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &pilotpb.GetStatusResponse{}
	if r, ok := p.tracker.Serving(); ok {
		st.Serving = r.Number
	}
	for _, r := range p.tracker.Revisions() {
		st.Revisions = append(st.Revisions, revisionStatus(r))
	}
	st.Revocations = &pilotpb.RevocationStatus{
		Sequence: p.revoked.Sequence, Certificates: uint32(len(p.revoked.Certificates)), Identities: uint32(len(p.revoked.Identities)),
	}
	connected := map[string]bool{}
	for _, c := range p.xds.Clients() {
		connected[c.ID] = true
		client := &pilotpb.Client{
			Id: c.ID, Kind: string(c.Kind), Version: c.Version, AckedRevision: c.Acked,
			ConnectedAt: timestamppb.New(c.ConnectedAt), LastError: c.LastError, Resources: map[string]uint32{},
		}
		for url, n := range c.Resources {
			client.Resources[shortType(url)] = n
		}
		st.Clients = append(st.Clients, client)
	}
	if p.current != nil {
		for id := range p.current.placed {
			if !connected[id] {
				st.Missing = append(st.Missing, id)
			}
		}
		slices.Sort(st.Missing)
		st.Rego = p.current.rego()
	}
	for _, pr := range p.allProblems() {
		st.Problems = append(st.Problems, &pilotpb.Problem{
			File: pr.File, Line: uint32(max(pr.Line, 0)), Object: pr.Object, Field: pr.Field, Message: pr.Message, Severity: pr.Severity.String(),
			InForce: pr.InForce,
		})
	}
	st.KeySets = keySetStatus(p.keySets.Status())
	return st, p.changed
}

func revisionStatus(r revision.Revision) *pilotpb.Revision {
	out := &pilotpb.Revision{Number: r.Number, CreatedAt: timestamppb.New(r.Created)}
	switch r.State {
	case revision.Pending:
		out.State = pilotpb.RevisionState_REVISION_STATE_PENDING
	case revision.Live:
		out.State = pilotpb.RevisionState_REVISION_STATE_LIVE
		out.TimeToLive = durationpb.New(r.TimeToLive)
	case revision.Rejected:
		out.State = pilotpb.RevisionState_REVISION_STATE_REJECTED
	case revision.Superseded:
		out.State = pilotpb.RevisionState_REVISION_STATE_SUPERSEDED
	}
	if w := r.Rejection; w != nil {
		out.Rejection = &pilotpb.Rejection{Client: w.Client, TypeUrl: w.TypeURL, Detail: w.Detail, Objects: w.Objects}
	}
	return out
}
