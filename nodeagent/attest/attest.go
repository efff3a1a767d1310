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
	// Docker is the path of the container runtime's socket, "" if there is none.
	Docker string
	// Kubelet is where the node's pods are told of, zero if there is none.
	Kubelet Kubelet
	// Secret tells whether a secret is that of a proxy's bootstrap. If it is nil none is.
	Secret func(proxyID, secret string) bool
	Log    *slog.Logger
}

// Attestor knows the workloads of a node and recognizes them among callers. It
// is safe for concurrent use.
type Attestor struct {
	cfg     Config
	collect *collector
	ctx     context.Context //nolint:containedctx // the life of the goroutines, ended by Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	placement placement
	regs      map[int32]*registration
	envoys    map[int32]*process
	index     *index
	leases    map[*Lease]struct{}
	parked    map[uint32]int
	changed   chan struct{} // closed and replaced at each change
	// rechecking: a goroutine looks at leases again. saving: one will write the
	// identities' registrations.
	rechecking, saving bool

	saveMu sync.Mutex // serializes writing of what is kept on disk
}

// New returns an attestor that goes on from the state on disk. State that cannot
// be read is set aside with a warning: registration and placement come again.
func New(ctx context.Context, cfg Config) *Attestor {
	a := &Attestor{
		cfg:     cfg,
		regs:    make(map[int32]*registration),
		envoys:  make(map[int32]*process),
		index:   newIndex(),
		leases:  make(map[*Lease]struct{}),
		parked:  make(map[uint32]int),
		changed: make(chan struct{}),
	}
	a.ctx, a.cancel = context.WithCancel(context.WithoutCancel(ctx))
	a.collect = &collector{overflowUID: overflow("uid"), overflowGID: overflow("gid"), sums: newSums()}
	if cfg.Docker != "" {
		a.collect.runtime = newDocker(a.ctx, cfg.Docker, &a.wg, cfg.Log)
	}
	if cfg.Kubelet.URL != "" {
		a.collect.pods = &kubelet{cfg: cfg.Kubelet}
	}
	if err := a.loadPlacement(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		cfg.Log.WarnContext(ctx, "stored placement is not used", slog.Any("error", err))
	}
	if err := a.loadRegistrations(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		cfg.Log.WarnContext(ctx, "stored registrations are not used", slog.Any("error", err))
	}
	if err := a.loadEnvoys(); err != nil {
		cfg.Log.WarnContext(ctx, "stored list of Envoys is not used", slog.Any("error", err))
	}
	if err := a.loadIdentities(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		cfg.Log.WarnContext(ctx, "stored identities are not used", slog.Any("error", err))
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
	for _, p := range a.envoys {
		p.close()
	}
	for l := range a.leases {
		l.cancel()
	}
	a.mu.Unlock()
	a.cancel()
	a.wg.Wait()
}

// Lease is the attested identity of one stream of a caller. It holds until Done
// is closed: the process has ended, or the mesh placed the workload elsewhere.
type Lease struct {
	Workload
	// Own: the call has the secret of its proxy's bootstrap, so that it is that Envoy's own.
	Own    bool
	caller Caller
	seen   seen // guarded by Attestor.mu
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
// ctx. Their text is for the log; what the caller gets of it names no
// registration but its own.
func (a *Attestor) Attest(ctx context.Context, c Caller) (*Lease, error) {
	l, next := a.look(ctx, c)
	if l != nil {
		return l, nil
	}
	if !a.park(c.UID) {
		return nil, status.Errorf(codes.ResourceExhausted, "caller %s is not known, and %d more of its user wait to be", c, maxParked)
	}
	defer a.unpark(c.UID)
	timeout := time.NewTimer(a.cfg.Wait)
	defer timeout.Stop()
	for wait := againMin; ; wait = min(2*wait, againMax) {
		select {
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-timeout.C:
			return nil, a.refuse(c, next)
		case <-next.changed:
			wait = againMin
		case <-next.again(wait):
		}
		if l, next = a.look(ctx, c); l != nil {
			return l, nil
		}
	}
}

// againMin and againMax bound how long a caller waits of whom something could
// not be found out, until it is looked for again.
const (
	againMin = 100 * time.Millisecond
	againMax = time.Second
)

// missed is why a caller is not known, and when to look again.
type missed struct {
	reason  error
	seen    seen
	changed <-chan struct{}
}

// again gives a channel that fires if looking again may help by itself.
func (m missed) again(wait time.Duration) <-chan time.Time {
	if !m.seen.again {
		return nil
	}
	return time.After(wait)
}

// look collects the facts that are needed and tries.
func (a *Attestor) look(ctx context.Context, c Caller) (*Lease, missed) {
	for {
		s := a.collect.collect(ctx, c, a.needs(c))
		a.mu.Lock()
		if a.needsLocked(c)&^s.kinds != 0 {
			a.mu.Unlock()
			continue // a registration came that needs more
		}
		l, m := a.try(c, s)
		a.mu.Unlock()
		return l, m
	}
}

func (a *Attestor) needs(c Caller) kinds {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.needsLocked(c)
}

// needsLocked are the kinds of facts by which c is recognized: none for a
// registered process. It needs a.mu.
func (a *Attestor) needsLocked(c Caller) kinds {
	if _, ok := a.process(c); ok {
		return 0
	}
	return a.index.needs()
}

// process gives the proxy that the caller's process is registered for. It needs
// a.mu.
func (a *Attestor) process(c Caller) (proxyID string, ok bool) {
	r := a.regs[c.PID]
	if r == nil || c.StartTime == 0 || r.proc.start != c.StartTime {
		return "", false
	}
	return r.proxyID, true
}

// try needs a.mu.
func (a *Attestor) try(c Caller, s seen) (*Lease, missed) {
	if a.closed {
		return nil, missed{reason: errors.New("the agent is stopping"), seen: s, changed: a.changed}
	}
	w, err := a.resolve(c, s)
	if err != nil {
		return nil, missed{reason: err, seen: s, changed: a.changed}
	}
	l := &Lease{Workload: w, caller: c, seen: s, done: make(chan struct{}), owner: a}
	a.leases[l] = struct{}{}
	return l, missed{}
}

// resolve says which workload a caller is. The supervisor's word about a process
// comes first; then it is whoever has most facts for him: what pilot places has
// one, the user. It needs a.mu.
func (a *Attestor) resolve(c Caller, s seen) (Workload, error) {
	proxyID, ok := a.process(c)
	w, err := a.placement.resolve(c, proxyID, ok, a.collect.overflowUID)
	best := a.index.match(s.facts)
	switch {
	case ok, len(best) == 0:
		return w, err
	case err == nil && len(best[0].facts) == 1 && best[0].spiffeID == w.ID:
		return w, nil
	case err == nil && len(best[0].facts) == 1:
		return Workload{}, &ambiguity{"by its user it is a workload that the mesh places here, by a registration another"}
	}
	for _, e := range best[1:] {
		if e.spiffeID != best[0].spiffeID {
			return Workload{}, &ambiguity{fmt.Sprintf("its facts are those of %d registrations, of different identities", len(best))}
		}
	}
	return registered(best[0].spiffeID), nil
}

// registered is the workload of a registration.
func registered(id spiffeid.ID) Workload {
	return Workload{ProxyID: id.String(), ID: id, Registered: true}
}

// ambiguity is when somebody could be one or another.
type ambiguity struct{ text string }

// Error implements error.
func (e *ambiguity) Error() string { return e.text }

// notify ends the leases that no longer hold and wakes who waits. It needs a.mu.
func (a *Attestor) notify() {
	stale := false
	for l := range a.leases {
		switch w, err := a.resolve(l.caller, l.seen); {
		case a.needsLocked(l.caller)&^l.seen.kinds != 0:
			stale = true // with the facts that are asked for now it may be somebody else
		case err != nil || w != l.Workload:
			delete(a.leases, l)
			l.cancel()
		}
	}
	if stale && !a.rechecking && !a.closed {
		a.rechecking = true
		a.wg.Go(a.recheck)
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// recheck collects what registrations that came later ask for, for the leases
// that were given without it.
func (a *Attestor) recheck() {
	for {
		a.mu.Lock()
		var stale *Lease
		for l := range a.leases {
			if a.needsLocked(l.caller)&^l.seen.kinds != 0 {
				stale = l
				break
			}
		}
		if stale == nil || a.closed {
			a.rechecking = false
			a.mu.Unlock()
			return
		}
		caller, need := stale.caller, a.needsLocked(stale.caller)
		a.mu.Unlock()
		s := a.collect.collect(a.ctx, caller, need)
		a.mu.Lock()
		stale.seen = s
		if w, err := a.resolve(caller, s); err != nil || w != stale.Workload {
			delete(a.leases, stale)
			stale.cancel()
		}
		a.mu.Unlock()
	}
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
// Credentials, and refuses calls that are not their process's own.
func (a *Attestor) AttestCaller(ctx context.Context) (*Lease, error) {
	c, ok := callerFrom(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "callers are recognized on the agent's unix socket only")
	}
	l, err := a.Attest(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := a.own(ctx, l); err != nil {
		l.Release()
		return nil, err
	}
	return l, nil
}
