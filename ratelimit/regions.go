package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/lease"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/quota"
	"github.com/writ-mesh/writ/ratelimit/regions"
)

const (
	// maxRegionMessage bounds what another region sends, in bytes: 64 counters with
	// their names.
	maxRegionMessage = 2 << 20
	// regionStreams bounds the calls of one connection that are under way: a region has
	// one at a time.
	regionStreams = 4
)

// across makes the store that keeps limits together with other regions, before that of
// this one.
func (s *Service) across(below Store) (Store, error) {
	c := &s.config.Regions
	if !c.Enabled() {
		return below, nil
	}
	division, err := regions.NewDivision(c.Name, c.Shares)
	if err != nil {
		return nil, err
	}
	s.regions = regions.New(regions.Options{
		Below: below, Division: division, NameOf: quota.NameOf, MaxKeys: s.config.Memory.MaxKeys, Now: time.Now, Peers: c.Peers,
	}, s.rt.Metrics)
	lender := &regions.Lender{
		Store: below, Division: division, Percent: c.Lend, Now: time.Now, Borrower: s.regions, Log: s.log,
		Find:    func(name string) (limit.Use, error) { return s.server.toLend(name) },
		Counted: s.counted,
		Apply:   s.changeForRegion,
	}
	s.withSource = append(s.withSource, func(ctx context.Context, source *credential.Source) error {
		return s.meetRegions(ctx, source, lender)
	})
	s.tasks = append(s.tasks, s.regions.Run)
	return s.regions, nil
}

// toLend finds the counter of a name of which hits may be lent.
func (s *Server) toLend(name string) (limit.Use, error) {
	found, err := s.find(name)
	if err != nil {
		return limit.Use{}, err
	}
	if found.shared.Key != "" { // a region that asks for one all the same takes it from one tenant
		return limit.Use{}, errors.New("a limit that is shared fairly is divided and not lent")
	}
	return found.use, nil
}

// lookingAtLoans makes the replicas' store look at what is lent, if anything can be.
func (s *Service) lookingAtLoans(shared lease.Decider) lease.Decider {
	if !s.config.Regions.Enabled() {
		return shared
	}
	return regions.Holding{To: shared}
}

// counted is the limit that the counters of this region are asked for.
func (s *Service) counted(part limit.Limit, mode limit.Mode) limit.Limit {
	if terms, ok := lease.TermsOf(part); ok && mode == limit.Leased && s.config.Redis.shared() {
		return terms.Asked
	}
	return part
}

// meetRegions lends to other regions and borrows from them until ctx ends.
func (s *Service) meetRegions(ctx context.Context, source *credential.Source, lender *regions.Lender) error {
	files, peers := make(credential.Foreign), make(map[spiffeid.ID][]regions.Peer)
	ids := make([]spiffeid.ID, 0, len(s.config.Regions.Peers))
	for _, p := range s.config.Regions.Peers {
		td := source.ID().TrustDomain()
		if p.TrustDomain != "" {
			var err error
			if td, err = spiffeid.TrustDomainFromString(p.TrustDomain); err != nil {
				return err
			}
			files[td] = p.TrustBundle
		}
		id, err := identity.Service(td, identity.RateLimit)
		if err != nil {
			return err
		}
		ids, peers[id] = append(ids, id), append(peers[id], p)
	}
	lender.Peers = peers
	methods := regionMethods(ids)
	g := rpc.NewServer(source.ServerCredentialsFor(files, ids...), methods, s.rt, grpc.MaxRecvMsgSize(maxRegionMessage), grpc.MaxConcurrentStreams(regionStreams))
	ratelimitpb.RegisterRegionsServer(g, lender)
	if err := rpc.CheckMethods(g, methods); err != nil {
		return err
	}
	l, err := listen.Listen(s.config.Regions.Listen)
	if err != nil {
		return fmt.Errorf("regions: %w", err)
	}
	tasks := []func(context.Context) error{func(ctx context.Context) error { return rpc.Serve(ctx, g, l) }}
	for i, p := range s.config.Regions.Peers {
		conn, err := source.DialFor(p.Address, ids[i], files)
		if err != nil {
			return errors.Join(fmt.Errorf("regions: %s: %w", p.Name, err), l.Close())
		}
		tasks = append(tasks, func(ctx context.Context) error {
			defer func() { _ = conn.Close() }()
			return s.regions.Connect(ctx, p.Name, ratelimitpb.NewRegionsClient(conn), s.log)
		})
	}
	s.log.InfoContext(ctx, "limits are kept with other regions", slog.String("region", s.config.Regions.Name), slog.String("listen", s.config.Regions.Listen))
	return service.RunTasks(ctx, tasks...)
}

// regionMethods says who may call what for another region: exactly its ratelimit.
func regionMethods(peers []spiffeid.ID) rpc.Methods {
	allow := func(c rpc.Caller) error {
		if !c.ID.IsZero() && slices.Contains(peers, c.ID) {
			return nil
		}
		return status.Errorf(codes.PermissionDenied, "%s is not the ratelimit of another region", c)
	}
	return rpc.Methods{
		ratelimitpb.Regions_Borrow_FullMethodName: allow,
		ratelimitpb.Regions_Return_FullMethodName: allow,
		ratelimitpb.Regions_Change_FullMethodName: allow, // and regions.peers has operators: true for it
	}
}
