package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ticksPerSecond is USER_HZ, 100 on every Linux that Go runs on (proc(5), times(2)).
const ticksPerSecond = 100

// process is a server that was started for a measurement.
type process struct {
	cmd  *exec.Cmd
	name string
	out  *tail
	done chan error
}

// launch starts a program and waits until its address answers.
func launch(ctx context.Context, address, program string, args ...string) (*process, error) {
	return launchWithin(ctx, 20*time.Second, address, program, args...)
}

func launchWithin(ctx context.Context, most time.Duration, address, program string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(program), out: &tail{}, done: make(chan error, 1)}
	p.cmd = exec.CommandContext(ctx, program, args...) //nolint:gosec // binaries of this repository
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	// Should bench be killed, the kernel ends what it started.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s (make build): %w", program, err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	network, addr := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		network, addr = "unix", path
	}
	deadline := time.NewTimer(most)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, addr); err == nil {
			return p, c.Close()
		}
		select {
		case err := <-p.done:
			return nil, fmt.Errorf("%s ended (%w): %s", p.name, err, p.out)
		case <-deadline.C:
			p.stop()
			return nil, fmt.Errorf("%s does not listen on %s: %s", p.name, address, p.out)
		case <-ctx.Done():
			p.stop()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// stop ends the process and waits for it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// cpu is the CPU time that the process has used so far, in steps of 10 ms.
func (p *process) cpu() (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return parseStat(data)
}

// parseStat takes utime and stime out of /proc/PID/stat, fields 14 and 15 of
// proc(5). The second field is the program's name and may hold anything.
func parseStat(data []byte) (time.Duration, error) {
	_, rest, ok := cutLast(data, []byte(") "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat has another form")
	}
	var ticks uint64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / ticksPerSecond), nil //nolint:gosec // far below
}

func cutLast(s, sep []byte) (before, after []byte, found bool) {
	i := bytes.LastIndex(s, sep)
	if i < 0 {
		return s, nil, false
	}
	return s[:i], s[i+len(sep):], true
}

// rss is the process's resident memory in MiB.
func (p *process) rss() float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseFloat(fields[1], 64)
	return pages * float64(os.Getpagesize()) / (1 << 20)
}

// peak is the most resident memory that the process ever had, in MiB.
func (p *process) peak() float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return kib / 1024
		}
	}
	return 0
}

// tail keeps the end of what a process prints.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const keep = 4096
	t.buf = append(t.buf, b...)
	if len(t.buf) > keep {
		t.buf = t.buf[len(t.buf)-keep:]
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
