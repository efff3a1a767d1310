package attest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/nodeagent/statefile"
)

const (
	registrationFile  = "registrations"
	registrationMagic = "WRITREG1"
	// maxProxyID bounds a proxy id, in bytes; Kubernetes names of pod and
	// namespace together have at most 506.
	maxProxyID = 1024
	// maxRegistrations bounds how many processes are held.
	maxRegistrations = 10_000
)

type registration struct {
	proc    *process
	proxyID string
}

// The stored form.
type storedRegistrations struct {
	BootID    string               `json:"boot_id"`
	Processes []storedRegistration `json:"processes"`
}

type storedRegistration struct {
	PID       int32  `json:"pid"`
	StartTime uint64 `json:"start_time"`
	ProxyID   string `json:"proxy_id"`
}

// Register says that a running process is the proxy with that xDS node id. It
// holds until the process ends. Registering the same again is no error; a process
// never changes from one proxy to another. Errors are gRPC status errors:
// INVALID_ARGUMENT, NOT_FOUND for a process that is not running, ALREADY_EXISTS,
// RESOURCE_EXHAUSTED, UNAVAILABLE.
func (a *Attestor) Register(ctx context.Context, pid int32, proxyID string) error {
	if pid <= 0 {
		return status.Errorf(codes.InvalidArgument, "process id %d: want a positive number", pid)
	}
	if proxyID == "" || len(proxyID) > maxProxyID {
		return status.Errorf(codes.InvalidArgument, "proxy id has %d bytes: want 1 to %d", len(proxyID), maxProxyID)
	}
	proc, err := openProcess(pid)
	if err != nil {
		return status.Errorf(codes.NotFound, "register process: %v", err)
	}
	added, err := a.add(ctx, proc, proxyID)
	if !added {
		proc.close()
	}
	if err != nil {
		return err
	}
	a.cfg.Log.InfoContext(ctx, "process registered", slog.Int("pid", int(pid)), slog.String("proxy", proxyID))
	a.saveRegistrations(ctx)
	return nil
}

// add takes over proc if it answers true.
func (a *Attestor) add(ctx context.Context, proc *process, proxyID string) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false, status.Error(codes.Unavailable, "the agent is stopping")
	}
	if old := a.regs[proc.pid]; old != nil && old.proc.start == proc.start {
		if old.proxyID != proxyID {
			return false, status.Errorf(codes.AlreadyExists, "process %d is registered as %s", proc.pid, old.proxyID)
		}
		return false, nil
	}
	if len(a.regs) >= maxRegistrations {
		return false, status.Errorf(codes.ResourceExhausted, "%d processes are registered, no more are held", len(a.regs))
	}
	r := &registration{proc: proc, proxyID: proxyID}
	a.regs[proc.pid] = r
	a.wg.Go(func() { a.follow(context.WithoutCancel(ctx), r) })
	a.notify()
	return true, nil
}

// follow drops a registration when its process ends.
func (a *Attestor) follow(ctx context.Context, r *registration) {
	if err := r.proc.wait(); err != nil {
		return // closed with the attestor
	}
	a.mu.Lock()
	if a.regs[r.proc.pid] == r {
		delete(a.regs, r.proc.pid)
	}
	a.notify()
	closed := a.closed
	a.mu.Unlock()
	r.proc.close()
	a.cfg.Log.InfoContext(ctx, "registered process has ended", slog.Int("pid", int(r.proc.pid)), slog.String("proxy", r.proxyID))
	if !closed {
		a.saveRegistrations(ctx)
	}
}

func (a *Attestor) saveRegistrations(ctx context.Context) {
	a.saveMu.Lock()
	defer a.saveMu.Unlock()
	stored := storedRegistrations{BootID: bootID()}
	a.mu.Lock()
	for _, r := range a.regs {
		stored.Processes = append(stored.Processes, storedRegistration{PID: r.proc.pid, StartTime: r.proc.start, ProxyID: r.proxyID})
	}
	a.mu.Unlock()
	data, err := json.Marshal(stored)
	if err == nil {
		err = statefile.Write(a.path(registrationFile), registrationMagic, data)
	}
	if err != nil {
		a.cfg.Log.WarnContext(ctx, "registrations are not kept for a restart", slog.Any("error", err))
	}
}

// loadRegistrations takes up the stored processes that still run.
func (a *Attestor) loadRegistrations(ctx context.Context) error {
	data, err := statefile.Read(a.path(registrationFile), registrationMagic, stateLimit)
	if err != nil {
		return err
	}
	var stored storedRegistrations
	if err := json.Unmarshal(data, &stored); err != nil {
		return fmt.Errorf("stored registrations: %w", err)
	}
	if stored.BootID != bootID() {
		return nil
	}
	for _, s := range stored.Processes {
		proc, err := openSame(s.PID, s.StartTime)
		if err != nil {
			continue
		}
		if added, err := a.add(ctx, proc, s.ProxyID); !added || err != nil {
			proc.close()
			continue
		}
		a.cfg.Log.InfoContext(ctx, "process taken up again", slog.Int("pid", int(s.PID)), slog.String("proxy", s.ProxyID))
	}
	return nil
}
