// Package supervise starts processes, starts them again when they die, and ends
// them all: what init does on a server, for the local stack.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Back-off between a death and the next start. A process that lived longer than
// stable is started at once.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
	stable     = 10 * time.Second
)

// Process describes a process to keep running.
type Process struct {
	// Name is for logs and messages.
	Name string
	// Command is the path of the program and its arguments.
	Command []string
	// Env is the whole environment.
	Env []string
	Dir string
	// Output receives standard output and standard error.
	Output io.Writer
	// Before runs before each start; an error delays the start as a death does.
	Before func(context.Context) error
	// Started is called with the process ID after each start.
	Started func(pid int)
	// Grace is how long the process may take to end after SIGTERM.
	Grace time.Duration
}

// Handle is a supervised process.
type Handle struct {
	p      Process
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	state State
}

// State is how a process fares.
type State struct {
	// PID is its process ID, 0 while it does not run.
	PID int
	// Started is when it was started last.
	Started time.Time
	// Restarts is how often it ended and was started again, LastExit how it last
	// ended.
	Restarts int
	LastExit string
}

// Start keeps p running until Stop is called or ctx ends.
func Start(ctx context.Context, p Process, log *slog.Logger) *Handle {
	ctx, cancel := context.WithCancel(ctx)
	h := &Handle{p: p, log: log, cancel: cancel, done: make(chan struct{})}
	go h.run(ctx)
	return h
}

// Stop ends the process and waits until it is gone.
func (h *Handle) Stop() {
	h.cancel()
	<-h.done
}

// State tells how the process fares.
func (h *Handle) State() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// run stays on one thread: the kernel's parent-death signal is tied to the
// thread that started the child, prctl(2) PR_SET_PDEATHSIG.
func (h *Handle) run(ctx context.Context) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(h.done)
	backoff := minBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := h.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > stable {
			backoff = minBackoff
		}
		h.mu.Lock()
		h.state.Restarts++
		h.state.LastExit = fmt.Sprint(err)
		n := h.state.Restarts
		h.mu.Unlock()
		// One that ends again and again is told of ever more seldom.
		if n&(n-1) == 0 {
			h.log.WarnContext(ctx, "process ended, starting it again", slog.String("process", h.p.Name), slog.Any("exit", err), slog.Int("times", n))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// once runs the process to its end.
func (h *Handle) once(ctx context.Context) error {
	if h.p.Before != nil {
		if err := h.p.Before(ctx); err != nil {
			return err
		}
	}
	cmd := exec.Command(h.p.Command[0], h.p.Command[1:]...) //nolint:noctx // ended by terminate, with grace
	cmd.Env, cmd.Dir = h.p.Env, h.p.Dir
	cmd.Stdout, cmd.Stderr = h.p.Output, h.p.Output
	// Its own group, so that Ctrl-C in a terminal reaches only the supervisor,
	// which then ends everything in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", h.p.Command[0], err)
	}
	h.setPID(cmd.Process.Pid)
	defer h.setPID(0)
	if h.p.Started != nil {
		h.p.Started(cmd.Process.Pid)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err := <-exited:
		if err == nil {
			err = errors.New("exit status 0")
		}
		return err
	case <-ctx.Done():
		return h.terminate(cmd.Process.Pid, exited)
	}
}

func (h *Handle) setPID(pid int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.PID = pid
	if pid != 0 {
		h.state.Started = time.Now()
	}
}

// terminate asks the whole process group to end and kills what is left after the grace.
func (h *Handle) terminate(pid int, exited <-chan error) error {
	_ = syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case err := <-exited:
		_ = syscall.Kill(-pid, syscall.SIGKILL) // children that it left behind
		return err
	case <-time.After(h.p.Grace):
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		return <-exited
	}
}

// LogFile opens a log file for appending, moving a large one aside first.
func LogFile(path string, limit int64) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > limit {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// Name is the process's name.
func (h *Handle) Name() string { return h.p.Name }
