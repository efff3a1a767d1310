package attest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"

	"github.com/writ-mesh/writ/nodeagent/statefile"
)

const (
	placementFile  = "placement"
	placementMagic = "WRITPLC1"
	// stateLimit bounds the state files of this package, in bytes.
	stateLimit = 16 << 20
	// maxParked bounds how many streams of one user wait to become known, so
	// that a user who never will cannot fill the agent's memory.
	maxParked = 64
)

// Config is what New needs.
type Config struct {
	Node        string
	TrustDomain spiffeid.TrustDomain
	// Dir is where registrations and the placement are kept; it must exist.
	Dir string
	// Wait is how long an unknown caller is parked before it is refused.
	Wait time.Duration
	Log  *slog.Logger
}

// Attestor knows the workloads of a node and recognizes them among callers. It
// is safe for concurrent use.
type Attestor struct {
	cfg      Config
	overflow uint32
	wg       sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	placement placement
	regs      map[int32]*registration
	leases    map[*Lease]struct{}
	parked    map[uint32]int
	changed   chan struct{} // closed and replaced at each change

	saveMu sync.Mutex // serializes writing of the registrations
}

// New returns an attestor that goes on from the state on disk. State that cannot
// be read is set aside with a warning: registration and placement come again.
func New(ctx context.Context, cfg Config) *Attestor {
	a := &Attestor{
		cfg:      cfg,
		overflow: overflowUID(),
		regs:     make(map[int32]*registration),
		leases:   make(map[*Lease]struct{}),
		parked:   make(map[uint32]int),
		changed:  make(chan struct{}),
	}
	if err := a.loadPlacement(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		cfg.Log.WarnContext(ctx, "stored placement is not used", slog.Any("error", err))
	}
	if err := a.loadRegistrations(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		cfg.Log.WarnContext(ctx, "stored registrations are not used", slog.Any("error", err))
	}
	return a
}

// Close ends all leases and lets go of all processes. Registrations stay on disk.
func (a *Attestor) Close() {
	a.mu.Lock()
	a.closed = true
	for _, r := range a.regs {
		r.proc.close()
	}
	for l := range a.leases {
		l.cancel()
	}
	a.mu.Unlock()
	a.wg.Wait()
}

// Lease is the attested identity of one stream of a caller. It holds until Done
// is closed: the process has ended, or the mesh placed the workload elsewhere.
type Lease struct {
	Workload
	caller Caller
	done   chan struct{}
	once   sync.Once
	owner  *Attestor
}

// Done is closed when the identity no longer holds.
func (l *Lease) Done() <-chan struct{} { return l.done }

// Release says that the lease is no longer needed.
func (l *Lease) Release() {
	l.owner.mu.Lock()
	delete(l.owner.leases, l)
	l.owner.mu.Unlock()
}

func (l *Lease) cancel() { l.once.Do(func() { close(l.done) }) }

// Attest returns a lease for the workload that the caller is. A caller that is
// not known waits for at most Config.Wait. Errors are gRPC status errors:
// PERMISSION_DENIED, RESOURCE_EXHAUSTED with too many callers waiting, or that of
// ctx.
func (a *Attestor) Attest(ctx context.Context, c Caller) (*Lease, error) {
	l, changed, reason := a.try(c)
	if l != nil {
		return l, nil
	}
	if !a.park(c.UID) {
		return nil, status.Errorf(codes.ResourceExhausted, "caller %s is not known, and %d more of its user wait to be", c, maxParked)
	}
	defer a.unpark(c.UID)
	timeout := time.NewTimer(a.cfg.Wait)
	defer timeout.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-timeout.C:
			return nil, status.Errorf(codes.PermissionDenied, "caller %s is no workload of node %s: %s (waited %s)", c, a.cfg.Node, reason, a.cfg.Wait)
		case <-changed:
		}
		if l, changed, reason = a.try(c); l != nil {
			return l, nil
		}
	}
}

// try also returns what is closed when it is worth trying again.
func (a *Attestor) try(c Caller) (*Lease, <-chan struct{}, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, a.changed, errors.New("the agent is stopping")
	}
	w, err := a.resolve(c)
	if err != nil {
		return nil, a.changed, err
	}
	l := &Lease{Workload: w, caller: c, done: make(chan struct{}), owner: a}
	a.leases[l] = struct{}{}
	return l, a.changed, nil
}

// resolve needs a.mu.
func (a *Attestor) resolve(c Caller) (Workload, error) {
	proxyID, ok := "", false
	if r := a.regs[c.PID]; r != nil && c.StartTime != 0 && r.proc.start == c.StartTime {
		proxyID, ok = r.proxyID, true
	}
	return a.placement.resolve(c, proxyID, ok, a.overflow)
}

// notify ends the leases that no longer hold and wakes who waits. It needs a.mu.
func (a *Attestor) notify() {
	for l := range a.leases {
		if w, err := a.resolve(l.caller); err != nil || w != l.Workload {
			delete(a.leases, l)
			l.cancel()
		}
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *Attestor) park(uid uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.parked[uid] >= maxParked {
		return false
	}
	a.parked[uid]++
	return true
}

func (a *Attestor) unpark(uid uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.parked[uid]--; a.parked[uid] == 0 {
		delete(a.parked, uid)
	}
}

// Place takes a new placement from pilot, keeps it on disk and ends the leases
// that it takes away. A placement that is wrong is refused and changes nothing;
// one that cannot be written is used all the same.
func (a *Attestor) Place(ctx context.Context, p *configpb.NodePlacement) error {
	checked, err := newPlacement(p, a.cfg.Node, a.cfg.TrustDomain)
	if err != nil {
		return err
	}
	if data, err := proto.Marshal(p); err != nil {
		return fmt.Errorf("placement: %w", err)
	} else if err := statefile.Write(a.path(placementFile), placementMagic, data); err != nil {
		a.cfg.Log.WarnContext(ctx, "placement is not kept for a restart", slog.Any("error", err))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.placement = checked
	a.notify()
	return nil
}

func (a *Attestor) loadPlacement() error {
	data, err := statefile.Read(a.path(placementFile), placementMagic, stateLimit)
	if err != nil {
		return err
	}
	p := new(configpb.NodePlacement)
	if err := proto.Unmarshal(data, p); err != nil {
		return fmt.Errorf("stored placement: %w", err)
	}
	checked, err := newPlacement(p, a.cfg.Node, a.cfg.TrustDomain)
	if err != nil {
		return err
	}
	a.placement = checked
	return nil
}

// Workloads returns what the mesh places on this node, by proxy id.
func (a *Attestor) Workloads() []Workload {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]Workload, 0, len(a.placement.byProxy))
	for _, w := range a.placement.byProxy {
		out = append(out, w.Workload)
	}
	slices.SortFunc(out, func(x, y Workload) int { return cmp.Compare(x.ProxyID, y.ProxyID) })
	return out
}

func (a *Attestor) path(name string) string { return filepath.Join(a.cfg.Dir, name) }

// AttestCaller is Attest for the caller of a gRPC method on a server with
// Credentials.
func (a *Attestor) AttestCaller(ctx context.Context) (*Lease, error) {
	c, ok := callerFrom(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "callers are recognized on the agent's unix socket only")
	}
	return a.Attest(ctx, c)
}
