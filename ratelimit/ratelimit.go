package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	rlqsv3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/decider"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/internal/xdsclient"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/configserver"
	"github.com/writ-mesh/writ/ratelimit/descriptors"
	"github.com/writ-mesh/writ/ratelimit/fallback"
	"github.com/writ-mesh/writ/ratelimit/lease"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/plans"
	"github.com/writ-mesh/writ/ratelimit/quota"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/regions"
)

const (
	// sweepEvery is how often idle counters are forgotten.
	sweepEvery = 30 * time.Second
	// stateFile is the last good policies, in Config.State.
	stateFile = "quota-policies.json"
	// garbage is how much of it may gather before it is collected, in bytes: two seconds
	// of it at 12,500 decisions. A collection takes some 5 ms, in which answers on one
	// processor wait; one in a second is half of the hundredth that p99 leaves.
	garbage = 128 << 20
	// streamWorkers handle calls on stacks that have grown already; more calls at
	// a time than that get goroutines of their own.
	streamWorkers = 16
	// maxMessage bounds a request in bytes; Envoy bounds its headers at 60 KiB,
	// and each may stand in several descriptors. A proxy reports all its buckets at
	// once, and has no assignments any more if that is refused.
	maxMessage = 4 << 20
	// retire is how long a policy that was edited or removed still decides for proxies whose
	// routes go with it: longer than connections drain by default, which is ten minutes.
	// forgetEvery is how often it is looked for those whose time is over.
	retire, forgetEvery = 15 * time.Minute, time.Minute
	// subsystemPolicies is ready once limits are there, from whatever source.
	subsystemPolicies = "policies"
)

// Service is a quota service that is ready to run.
type Service struct {
	config Config
	rt     *service.Runtime
	log    *slog.Logger

	server *Server
	local  *memory.Store
	alone  func(time.Time, []limit.Use) bool // nil if counters are in this process only
	plans  *plans.Book                       // nil without policies
	tasks  []func(context.Context) error
	// swap is held while one table of policies takes the place of another.
	swap sync.Mutex

	admin      *admin         // nil without Config.Admin
	regions    *regions.Store // nil if there is this one alone
	withSource []func(context.Context, *credential.Source) error
}

// New makes a service from a configuration that Validate accepted. It reads the
// last good policies or the descriptors; nothing is served yet.
func New(c Config, rt *service.Runtime) (*Service, error) {
	s := &Service{config: c, rt: rt, log: rt.Log, local: memory.New(c.Memory.MaxKeys)}
	decider.Register(rt.Health)
	rt.Health.Register(subsystemPolicies)
	store, err := s.store()
	if err != nil {
		return nil, err
	}
	if store, err = s.across(store); err != nil {
		return nil, err
	}
	s.server = &Server{store: store, now: time.Now, metrics: newMetrics(rt.Metrics, s.local), dropIn: c.DropIn, mode: c.mode(), alone: s.alone, inMemory: !c.Redis.shared(), regions: s.regions}
	rt.Metrics.MustRegister(topCollector{&s.server.top, time.Now})
	s.tasks = append(s.tasks, s.sweep, new(service.Garbage).Pace(garbage))
	if c.Admin != "" {
		if err := s.openAdmin(); err != nil {
			return nil, err
		}
	}
	switch {
	case c.Descriptors != "":
		return s, s.openDescriptors()
	case c.ConfigServer.Address != "":
		return s, s.openConfigServer()
	}
	return s, s.openQuotas()
}

// store makes the counters: in process, or in Redis with those in process to
// fall back to.
func (s *Service) store() (Store, error) {
	if !s.config.Redis.shared() {
		return s.local, nil
	}
	o, err := s.config.Redis.options()
	if err != nil {
		return nil, err
	}
	shared, err := redisstore.New(o)
	if err != nil {
		return nil, err
	}
	guard := fallback.New(shared, s.local, s.log, s.rt.Metrics)
	leases := lease.New(s.lookingAtLoans(guard), s.local, s.config.Memory.MaxKeys, time.Now, s.rt.Metrics)
	s.tasks = append(s.tasks, shared.Run, guard.Run, leases.Run)
	s.alone = guard.Alone
	return leases, nil
}

func (s *Service) openDescriptors() error {
	watcher, err := descriptors.NewWatcher(s.config.Descriptors, s.config.DropIn.MergeDomains)
	if err != nil {
		return err
	}
	set, err := watcher.Load()
	if err != nil && len(set.Names()) == 0 {
		return errors.Join(err, watcher.Close())
	}
	s.takeDescriptors(set, err)
	s.tasks = append(s.tasks, func(ctx context.Context) error { return watcher.Run(ctx, s.takeDescriptors) })
	return nil
}

func (s *Service) openConfigServer() error {
	client, err := configserver.New(s.config.ConfigServer, s.log)
	if err != nil {
		return err
	}
	s.tasks = append(s.tasks, func(ctx context.Context) error {
		return client.Run(ctx, func(sent []*ratelimitpb.DomainConfig) error {
			set, err := descriptors.FromServer(sent, s.server.domains.Load(), s.config.DropIn.MergeDomains)
			s.takeDescriptors(set, err)
			return err
		})
	})
	return nil
}

func (s *Service) takeDescriptors(set *descriptors.Set, err error) {
	if err != nil {
		s.server.metrics.rejected.Inc()
		s.log.Error("descriptors refused, the last good ones stay", slog.Any("error", err))
	}
	ids := make(map[string]bool)
	for _, name := range set.Names() {
		ids[name+".override"] = true
		for _, r := range set.Domain(name).Rules() {
			ids[r.ID] = true
		}
	}
	s.server.domains.Store(set)
	s.server.metrics.rules.Set(float64(len(ids)))
	s.server.metrics.keep(ids)
	s.server.top.Keep(ids)
	s.rt.Health.Set(subsystemPolicies, nil)
	s.log.Info("descriptors in force", slog.Int("domains", len(set.Names())))
}

func (s *Service) openQuotas() (err error) {
	s.server.quotas.Store(&quota.Table{})
	s.tasks = append(s.tasks, func(ctx context.Context) error { return service.Every(ctx, forgetEvery, s.forget) })
	if s.config.State != "" {
		if err := os.MkdirAll(s.config.State, 0o700); err != nil {
			return fmt.Errorf("state: %w", err)
		}
	}
	if s.plans, err = s.openPlans(); err != nil || s.config.State == "" {
		return err
	}
	policies, err := quota.Restore(filepath.Join(s.config.State, stateFile))
	if err == nil && policies != nil {
		err = s.takeQuotas(policies)
	}
	if err != nil { // pilot will bring them again
		s.log.Error("last good policies cannot be used, waiting for pilot", slog.Any("error", err))
	}
	return nil
}

func (s *Service) takeQuotas(policies map[string]*configpb.QuotaPolicy) error {
	s.swap.Lock()
	defer s.swap.Unlock()
	table, err := quota.New(policies, s.plans)
	if err != nil {
		s.server.metrics.rejected.Inc()
		return err
	}
	now := s.server.now()
	table, dropped := table.After(s.server.quotas.Load(), now, now.Add(retire))
	if dropped > 0 {
		s.log.Warn("there is no room for all earlier contents of policies; where routes still name them the newest count, and closed policies refuse", slog.Int("dropped", dropped))
	}
	s.putInForce(table)
	s.rt.Health.Set(subsystemPolicies, nil)
	s.log.Info("policies in force", slog.Int("policies", table.Len()), slog.Int("retired", table.Earlier()))
	return nil
}

// forget lets go of earlier contents whose time is over.
func (s *Service) forget(now time.Time) {
	s.swap.Lock()
	defer s.swap.Unlock()
	before := s.server.quotas.Load()
	if table := before.Unexpired(now); table != before {
		s.putInForce(table)
		s.log.Info("earlier contents of policies decide no more", slog.Int("gone", before.Earlier()-table.Earlier()), slog.Int("kept", table.Earlier()))
	}
}

// putInForce has a table decide, and forgets what is of no limit of it. The caller holds
// swap.
func (s *Service) putInForce(table *quota.Table) {
	s.server.quotas.Store(table)
	s.plans.Named(table.Plans())
	ids := table.IDs()
	s.server.metrics.rules.Set(float64(len(table.Limits())))
	s.server.metrics.contents.Set(float64(table.Earlier()))
	s.server.metrics.keep(ids)
	s.server.top.Keep(ids)
}

// apply takes a set from pilot and keeps it for a start without pilot.
func (s *Service) apply(resources map[string]proto.Message) error {
	policies, err := quota.FromResources(resources)
	if err != nil {
		return err
	}
	if err := s.takeQuotas(policies); err != nil {
		return err
	}
	if s.config.State == "" {
		return nil
	}
	if err := quota.Save(filepath.Join(s.config.State, stateFile), policies); err != nil {
		// In force all the same: pilot must not take a revision back for our disk.
		s.log.Error("last good policies cannot be kept", slog.Any("error", err))
	}
	return nil
}

func (s *Service) sweep(ctx context.Context) error {
	return service.Every(ctx, sweepEvery, s.local.Sweep)
}

// Run serves until ctx ends and drains then.
func (s *Service) Run(ctx context.Context) error {
	return s.config.Run(ctx, decider.Service{
		Name:          identity.RateLimit,
		Methods:       s.methods(),
		Register:      s.register,
		Options:       []grpc.ServerOption{grpc.MaxRecvMsgSize(maxMessage), grpc.NumStreamWorkers(streamWorkers)},
		Subscriptions: []xdsclient.Subscription{{Message: &configpb.QuotaPolicy{}, Apply: s.apply}},
		WithSource:    s.withSource,
		Tasks:         s.tasks,
	}, s.rt)
}

// methods are those that Envoys call. What proxies are assigned comes from pilot's
// policies alone.
func (s *Service) methods() []string {
	all := []string{rlsv3.RateLimitService_ShouldRateLimit_FullMethodName}
	if s.server.quotas.Load() != nil {
		all = append(all, rlqsv3.RateLimitQuotaService_StreamRateLimitQuotas_FullMethodName)
	}
	return all
}

func (s *Service) register(g *grpc.Server) {
	rlsv3.RegisterRateLimitServiceServer(g, s.server)
	if s.server.quotas.Load() != nil {
		rlqsv3.RegisterRateLimitQuotaServiceServer(g, newAssignedServer(s.server, s.log))
	}
}
