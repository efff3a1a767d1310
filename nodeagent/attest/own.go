package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/nodeagent/proxysecret"
	"github.com/writ-mesh/writ/nodeagent/statefile"
)

const (
	envoyFile  = "envoys"
	envoyMagic = "WRITENV1"
	// maxEnvoys bounds how many processes are held.
	maxEnvoys = 10_000
)

// The kernel says whose call it is, and the secret of the proxy's bootstrap that the process made it by itself:
// an Envoy can be configured to carry somebody else's calls to the agent's socket.
//
// Nobody gets configuration without the secret, and an Envoy without configuration forwards nothing. So whoever has
// shown one is an Envoy, is remembered as that for as long as it runs, before it is answered, and is believed nothing
// without it: neither secrets nor the Workload API. A process that never showed one is a program.

// own decides whether a call that was attested as l is its process's own. Errors are gRPC status errors.
func (a *Attestor) own(ctx context.Context, l *Lease) error {
	shown := metadata.ValueFromIncomingContext(ctx, proxysecret.Header)
	if len(shown) == 0 {
		switch {
		case a.isEnvoy(l.caller):
			return status.Errorf(codes.PermissionDenied, "caller %s is an Envoy, and this call without the secret of its bootstrap is somebody else's: is there a way through a proxy to the agent's socket?", l.caller)
		case l.caller.StartTime == 0 && !l.Registered:
			// Another time it could not be told from the Envoy of its user.
			return status.Errorf(codes.PermissionDenied, "caller %s does not show the secret of the bootstrap of %s, and its process cannot be seen from here: start the Envoy with what `writ bootstrap` writes; a program needs a user of its own and a registration", l.caller, l.ProxyID)
		}
		return nil
	}
	if err := a.isEnvoyNow(ctx, l.caller); err != nil {
		return err
	}
	if len(shown) != 1 || a.cfg.Secret == nil || !a.cfg.Secret(l.ProxyID, shown[0]) {
		return status.Errorf(codes.PermissionDenied, "caller %s is %s and shows a secret that is not that of its bootstrap on this node: start the Envoy with what `writ bootstrap` writes now", l.caller, l.ProxyID)
	}
	l.Own = true
	return nil
}

func (a *Attestor) isEnvoy(c Caller) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.envoys[c.PID]
	return p != nil && c.StartTime != 0 && p.start == c.StartTime
}

// isEnvoyNow remembers that the caller's process is an Envoy. When it returns that is on disk, unless the disk refuses.
// A process that cannot be seen needs no remembering: it is never believed without the secret.
func (a *Attestor) isEnvoyNow(ctx context.Context, c Caller) error {
	if c.StartTime == 0 || a.isEnvoy(c) {
		return nil
	}
	a.saveMu.Lock()
	defer a.saveMu.Unlock()
	if a.isEnvoy(c) {
		return nil
	}
	proc, err := openSame(c.PID, c.StartTime)
	if err != nil {
		return status.Errorf(codes.PermissionDenied, "caller %s: %v", c, err)
	}
	a.saveEnvoys(ctx, storedProcess{PID: proc.pid, StartTime: proc.start})
	if err := a.holdEnvoy(proc); err != nil {
		proc.close()
		return err
	}
	return nil
}

// holdEnvoy takes over proc unless it returns an error.
func (a *Attestor) holdEnvoy(proc *process) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return status.Error(codes.Unavailable, "the agent is stopping")
	case len(a.envoys) >= maxEnvoys:
		return status.Errorf(codes.ResourceExhausted, "%d processes are held as Envoys, no more are", len(a.envoys))
	}
	// What had the id before has ended, and its goroutine is about to see it.
	a.envoys[proc.pid] = proc
	a.wg.Go(func() {
		if err := proc.wait(); err != nil {
			return // closed with the attestor
		}
		a.mu.Lock()
		if a.envoys[proc.pid] == proc {
			delete(a.envoys, proc.pid)
		}
		a.mu.Unlock()
		proc.close()
	})
	return nil
}

// The stored form. One who has ended stays in it until another comes: process id and start time are nobody else's.
type storedEnvoys struct {
	BootID    string          `json:"boot_id"`
	Processes []storedProcess `json:"processes"`
}

type storedProcess struct {
	PID       int32  `json:"pid"`
	StartTime uint64 `json:"start_time"`
}

// saveEnvoys writes those that are held, and one more. It needs a.saveMu.
func (a *Attestor) saveEnvoys(ctx context.Context, more storedProcess) {
	stored := storedEnvoys{BootID: bootID(), Processes: []storedProcess{more}}
	a.mu.Lock()
	for _, p := range a.envoys {
		stored.Processes = append(stored.Processes, storedProcess{PID: p.pid, StartTime: p.start})
	}
	a.mu.Unlock()
	data, err := json.Marshal(stored)
	if err == nil {
		err = statefile.Write(a.path(envoyFile), envoyMagic, data)
	}
	if err != nil {
		a.cfg.Log.WarnContext(ctx, "that a process is an Envoy is not kept for a restart: until it calls again after one, a program may be taken for it", slog.Any("error", err))
	}
}

// loadEnvoys takes up the stored processes that still run.
func (a *Attestor) loadEnvoys() error {
	data, err := statefile.Read(a.path(envoyFile), envoyMagic, stateLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var stored storedEnvoys
	if err := json.Unmarshal(data, &stored); err != nil {
		return fmt.Errorf("stored envoys: %w", err)
	}
	if stored.BootID != bootID() {
		return nil
	}
	for _, s := range stored.Processes {
		proc, err := openSame(s.PID, s.StartTime)
		if err == nil && a.holdEnvoy(proc) != nil {
			proc.close()
		}
	}
	return nil
}
