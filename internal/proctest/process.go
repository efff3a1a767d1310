package proctest

import (
	"bytes"
	"os/exec"
	"sync"
	"syscall"
	"testing"
)

// Output collects what a program prints. It may be read while the program runs.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends p. It does not fail.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String is everything printed so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Process is a program that a test runs.
type Process struct {
	// Output is what it prints, on either stream.
	Output *Output
	cmd    *exec.Cmd
	done   chan struct{}
	err    error // how it ended
}

// Start runs a program until t ends; if t failed, what the program printed goes
// to the test's log. The kernel ends the program if the test itself is killed.
func Start(t testing.TB, program string, args ...string) *Process {
	t.Helper()
	p := &Process{Output: new(Output), cmd: exec.Command(program, args...), done: make(chan struct{})} //nolint:gosec,noctx // a test's own program, ended by Kill
	p.cmd.Stdout, p.cmd.Stderr = p.Output, p.Output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s:\n%s", p.cmd, p.Output)
		}
	})
	return p
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal; a process that has ended takes none.
func (p *Process) Signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// Kill ends the process at once, as a crash does, and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Wait waits until the process has ended by itself or by a signal, and returns
// an [exec.ExitError] unless that was with success.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }
