package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/cmd/writ/internal/supervise"
	"github.com/writ-mesh/writ/pilot/meshdir"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// Stack is a running mesh.
type Stack struct {
	opts Options
	log  *slog.Logger
	p    *paths
	addr *addresses
	// trustDomain and rootNamespace are from mesh.yaml.
	trustDomain, rootNamespace string

	// reserved is what no object may name.
	reserved meshdir.Reserved

	caAddr, pilotAddr string
	conns             []*grpc.ClientConn
	caAdmin           capb.AdminClient
	agentAdmin        nodeagentpb.AdminClient
	pilotStatus       pilotpb.StatusClient

	services []*supervise.Handle
	logs     []*os.File

	mu   sync.Mutex
	runs map[string]*run // by "<namespace>/<name>" of the replica or gateway
	last plan
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
	want, err := s.plan()
	if err != nil {
		return err
	}
	if err := s.checkGatewayPorts(want); err != nil {
		return err
	}
	if err := s.dial(); err != nil {
		return err
	}
	if err := s.writeInstances(want, nil); err != nil {
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
		st, err := s.pilotStatus.GetStatus(ctx, &pilotpb.GetStatusRequest{})
		if err != nil {
			return err
		}
		return Live(st)
	})
	if err != nil {
		return err
	}
	return s.waitForPrograms(ctx)
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

// Status asks pilot.
func (s *Stack) Status(ctx context.Context) (*pilotpb.GetStatusResponse, error) {
	return s.pilotStatus.GetStatus(ctx, &pilotpb.GetStatusRequest{})
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
	for _, h := range s.services {
		wg.Go(h.Stop)
	}
	wg.Wait()
	for _, c := range s.conns {
		_ = c.Close()
	}
	for _, f := range s.logs {
		_ = f.Close()
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
	for {
		if err := s.follow(ctx); err != nil {
			s.log.WarnContext(ctx, "the workloads stay as they are", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-changes:
		}
	}
}

func (s *Stack) follow(ctx context.Context) error {
	want, err := s.plan()
	if err != nil {
		return err
	}
	if want.equal(s.last) {
		return nil
	}
	if err := s.rollOut(ctx, want); err != nil {
		return err
	}
	return s.report(ctx)
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
