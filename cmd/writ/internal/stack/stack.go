package stack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/nodeagent/proxysecret"
	"github.com/writ-mesh/writ/pilot/meshdir"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// afterRollOut is how long it may take until the last revision of a roll-out is
// live and known.
const afterRollOut = time.Second

// troubleLook is how often it is tried again to start what cannot be.
const troubleLook = 2 * time.Second

// Stack is a running mesh.
type Stack struct {
	opts Options
	log  *slog.Logger
	p    *paths
	addr *addresses
	// trustDomain and rootNamespace are from mesh.yaml.
	trustDomain, rootNamespace string
	// compliance is the services' compliance_policy: pqc if the mesh requires it.
	compliance string

	// authority is the authority's configuration beyond what the stack sets.
	authority map[string]any
	// ratelimit is that of ratelimit.
	ratelimit map[string]any

	// reserved is what no object may name.
	reserved meshdir.Reserved

	// proxyKey makes the secrets of proxies; the node agent has it too.
	proxyKey *proxysecret.Key

	caAddr, pilotAddr string
	conns             []*grpc.ClientConn
	caAdmin           capb.AdminClient
	agentAdmin        nodeagentpb.AdminClient
	pilotStatus       pilotpb.StatusClient

	services []*process

	mu   sync.Mutex
	runs map[string]*run // by "<namespace>/<name>" of the replica or gateway
	// trouble is what keeps workloads of the last edit from being started.
	trouble []meshdir.Problem
	// stamp is that of the files that were acted on last, empty while todo is done;
	// refused is why they cannot be.
	stamp   string
	todo    []string
	refused []meshdir.Problem

	// telling guards told, what was written last of how far everything is.
	telling sync.Mutex
	told    []byte

	// last is what pilot was told of; only one goroutine at a time uses it.
	last plan
	// instances is what it was told, as it was written.
	instances []byte
	// reported is what was told last in run.json, with the status of pilot then.
	reported       *Ready
	reportedStatus *pilotpb.GetStatusResponse
	// rolling is until when, in nanoseconds of Unix time, revisions may come of
	// workloads that start and end.
	rolling atomic.Int64
}

// Up starts a mesh and returns when every sidecar has acknowledged the first
// revision and every program listens. The caller ends it with Down.
func Up(ctx context.Context, o Options, log *slog.Logger) (*Stack, error) {
	p, err := openPaths(o)
	if err != nil {
		return nil, err
	}
	s := &Stack{opts: o, log: log, p: p, runs: make(map[string]*run)}
	if err := s.up(ctx); err != nil {
		s.Down()
		return nil, err
	}
	return s, nil
}

func (s *Stack) up(ctx context.Context) error {
	var err error
	if s.addr, err = openAddresses(s.p.file(addressesFile)); err != nil {
		return err
	}
	if err := s.addr.save(); err != nil { // Reserved reads the block from there
		return err
	}
	if s.reserved, err = Reserved(s.p.dir, s.p.state); err != nil {
		return err
	}
	s.caAddr, s.pilotAddr = fmt.Sprintf("%s:%d", s.addr.at(0, 1), caPort), fmt.Sprintf("%s:%d", s.addr.at(0, 1), pilotPort)
	// What an earlier run left says nothing of this one.
	if err := os.Remove(s.p.file(progressFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	stamp, err := stampOf(s.p.dir)
	if err != nil {
		return err
	}
	want, err := s.plan()
	if err != nil {
		return err
	}
	if _, problems := s.missing(want); len(problems) > 0 {
		return problemsError(problems)
	}
	if err := s.checkGatewayPorts(want); err != nil {
		return err
	}
	if err := s.p.leaveNotice(want); err != nil {
		return err
	}
	for _, d := range s.daemons() {
		switch d.name {
		case "ca":
			s.authority, err = furtherKeys(d.name, s.opts.Authority, d.config)
		case "ratelimit":
			delete(d.config, "plans") // only what holds if nothing is said
			s.ratelimit, err = furtherKeys(d.name, s.opts.RateLimit, d.config)
		}
		if err != nil {
			return err
		}
	}
	if s.proxyKey, err = proxysecret.Open(s.p.file("nodeagent", proxysecret.File)); err != nil {
		return err
	}
	if err := s.dial(); err != nil {
		return err
	}
	if _, err := s.writeInstances(want, nil); err != nil {
		return err
	}
	if err := s.startDaemons(ctx); err != nil {
		return err
	}
	if err := s.waitForAgent(ctx); err != nil {
		return err
	}
	if err := s.reconcile(ctx, want); err != nil {
		return err
	}
	if err := s.waitUntilLive(ctx); err != nil {
		return err
	}
	s.acted(stamp, nil)
	return s.report(ctx)
}

func (s *Stack) dial() error {
	for name, use := range map[string]func(*grpc.ClientConn){
		"ca-admin":        func(c *grpc.ClientConn) { s.caAdmin = capb.NewAdminClient(c) },
		"nodeagent-admin": func(c *grpc.ClientConn) { s.agentAdmin = nodeagentpb.NewAdminClient(c) },
		"pilot-admin":     func(c *grpc.ClientConn) { s.pilotStatus = pilotpb.NewStatusClient(c) },
	} {
		c, err := dialUnix(s.p.socket(name))
		if err != nil {
			return err
		}
		s.conns = append(s.conns, c)
		use(c)
	}
	return nil
}

func (s *Stack) waitForAgent(ctx context.Context) error {
	return s.waitFor(ctx, "writ-nodeagent", func(ctx context.Context) error {
		_, err := s.agentAdmin.GetStatus(ctx, &nodeagentpb.GetStatusRequest{})
		return err
	})
}

// waitUntilLive waits for every proxy's acknowledgement of a revision and for
// every program to listen. Problems of the configuration do not stop it: what is
// good is served.
func (s *Stack) waitUntilLive(ctx context.Context) error {
	err := s.waitFor(ctx, "writ-pilot", func(ctx context.Context) error {
		st, err := s.status(ctx)
		if err != nil {
			return err
		}
		return Live(st)
	})
	if err != nil {
		return err
	}
	s.waitForPrograms(ctx, nil, func() bool { return false })
	return nil
}

// Live says why a mesh is not live yet, nil if it is.
func Live(st *pilotpb.GetStatusResponse) error {
	if missing := st.GetMissing(); len(missing) > 0 {
		return fmt.Errorf("not connected yet: %s", strings.Join(missing, ", "))
	}
	if st.GetServing() == 0 {
		return errors.New("pilot serves no revision yet")
	}
	return acknowledged(st)
}

// acknowledged names a client that has not acknowledged what pilot serves, nil if
// all have.
func acknowledged(st *pilotpb.GetStatusResponse) error {
	for _, c := range st.GetClients() {
		if c.GetAckedRevision() < st.GetServing() {
			return fmt.Errorf("%s has acknowledged revision %d of %d: %s", c.GetId(), c.GetAckedRevision(), st.GetServing(), c.GetLastError())
		}
	}
	return nil
}

func (s *Stack) status(ctx context.Context) (*pilotpb.GetStatusResponse, error) {
	return s.pilotStatus.GetStatus(ctx, &pilotpb.GetStatusRequest{})
}

// WatchStatus calls tell with pilot's status now and after each change, until ctx
// ends. rolling says that the revisions come of replicas that start and end.
func (s *Stack) WatchStatus(ctx context.Context, tell func(st *pilotpb.GetStatusResponse, rolling bool)) {
	for ctx.Err() == nil {
		stream, err := s.pilotStatus.WatchStatus(ctx, &pilotpb.WatchStatusRequest{}, grpc.WaitForReady(true))
		for err == nil {
			var st *pilotpb.GetStatusResponse
			if st, err = stream.Recv(); err == nil {
				tell(st, time.Now().UnixNano() < s.rolling.Load())
			}
		}
		select { // pilot is away: it is started again
		case <-ctx.Done():
		case <-time.After(programLook):
		}
	}
}

// Down ends every process: programs and proxies first, then the services.
func (s *Stack) Down() {
	s.mu.Lock()
	runs := s.runs
	s.runs = make(map[string]*run)
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, r := range runs {
		wg.Go(r.stop)
	}
	wg.Wait()
	for _, p := range s.services {
		wg.Go(p.stop)
	}
	wg.Wait()
	for _, c := range s.conns {
		_ = c.Close()
	}
	if s.addr != nil && s.addr.reservation != nil {
		_ = s.addr.close()
	}
	s.p.close()
}

// Follow starts and stops replicas as the mesh directory changes, until ctx ends.
// It begins with a look at the directory: an edit may have come between the
// start and the first signal of changes.
func (s *Stack) Follow(ctx context.Context, changes <-chan struct{}) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.renewTokens(ctx) })
	wg.Go(func() { s.watchPrograms(ctx) })
	for {
		stamp, err := stampOf(s.p.dir)
		if err == nil {
			err = s.follow(ctx, changes)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !errors.As(err, new(problemsError)) {
			s.log.WarnContext(ctx, "the workloads stay as they are", slog.Any("error", err))
		}
		s.acted(stamp, err)
		var again <-chan time.Time // a program or a port that is not there may come
		if len(s.trouble) > 0 {
			again = time.After(troubleLook)
		}
		select {
		case <-ctx.Done():
			return
		case <-changes:
		case <-again:
		}
	}
}

// follow makes what runs be what the directory says now. A workload whose program
// is not there stays as it is, and Follow's caller hears of it from
// WorkloadProblems.
func (s *Stack) follow(ctx context.Context, changes <-chan struct{}) error {
	want, err := s.plan()
	if err != nil {
		return err
	}
	missing, problems := s.missing(want)
	s.mu.Lock()
	known := s.trouble
	s.trouble = problems
	s.mu.Unlock()
	for _, p := range problems {
		if !slices.Contains(known, p) {
			s.opts.problem(p)
		}
	}
	if want = s.withoutMissing(want, missing); want.equal(s.last) {
		return nil
	}
	before := s.last.byKey()
	s.acting(todo(s.last.byKey(), want))
	s.rolling.Store(math.MaxInt64)
	defer func() { s.rolling.Store(time.Now().Add(afterRollOut).UnixNano()) }()
	if err := s.rollOut(ctx, want, s.newerThan(want, changes)); err != nil {
		return err
	}
	s.opts.tell(changesOf(before, want))
	if err := s.p.leaveNotice(want); err != nil {
		return err
	}
	return s.report(ctx)
}

// newerThan gives a function that says whether the directory wants other
// workloads by now: a program that does not listen holds back no later edit.
func (s *Stack) newerThan(want plan, changes <-chan struct{}) func() bool {
	var mu sync.Mutex
	var looked time.Time
	newer := false
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		if newer || len(changes) == 0 || time.Since(looked) < programLook {
			return newer
		}
		looked = time.Now()
		if next, err := s.plan(); err == nil {
			missing, _ := s.missing(next)
			newer = !s.withoutMissing(next, missing).equal(want)
		}
		return newer
	}
}

// todo says what is to be started, replaced and ended, by replica or gateway.
func todo(have map[string]replica, want plan) []string {
	var out []string
	for _, r := range want.replicas {
		if old, runs := have[r.key()]; !runs {
			out = append(out, fmt.Sprintf("%s: %s is being started", r.where, r.instance.Name))
		} else if !old.sameProcesses(r) {
			out = append(out, fmt.Sprintf("%s: %s is being replaced", r.where, r.instance.Name))
		}
		delete(have, r.key())
	}
	for _, r := range have {
		out = append(out, r.instance.Name+" is being ended")
	}
	slices.Sort(out)
	return out
}

// changesOf says which replicas and gateways were started, replaced and ended, ""
// if none.
func changesOf(before map[string]replica, want plan) string {
	var started, replaced, ended, all []string
	for _, r := range want.replicas {
		old, ran := before[r.key()]
		if !ran {
			started = append(started, r.instance.Name)
		} else if !old.sameProcesses(r) {
			replaced = append(replaced, r.instance.Name)
		}
		delete(before, r.key())
	}
	for _, r := range before {
		ended = append(ended, r.instance.Name)
	}
	slices.Sort(ended)
	for _, part := range []struct {
		verb  string
		names []string
	}{{"started", started}, {"replaced", replaced}, {"ended", ended}} {
		if n := len(part.names); n > 5 {
			part.names = append(part.names[:5:5], fmt.Sprintf("and %d more", n-5))
		}
		if len(part.names) > 0 {
			all = append(all, part.verb+" "+strings.Join(part.names, ", "))
		}
	}
	return strings.Join(all, "; ")
}

// problemsError is that of a mesh directory of which it is unknown what to run.
type problemsError []meshdir.Problem

func (e problemsError) Error() string {
	lines := make([]string, 0, len(e))
	for _, p := range e {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// poll calls f every few milliseconds until it works or the time is up.
func poll(ctx context.Context, bound time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
