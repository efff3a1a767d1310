package supervise_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/cmd/writ/internal/supervise"
	"github.com/writ-mesh/writ/internal/proctest"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

const bound = 10 * time.Second

func TestAProcessThatDiesIsStartedAgain(t *testing.T) {
	var mu sync.Mutex
	var pids []int
	h := supervise.Start(t.Context(), supervise.Process{
		Name: "sleep", Command: []string{"/bin/sleep", "60"}, Output: new(proctest.Output), Grace: time.Second,
		Started: func(pid int) { mu.Lock(); defer mu.Unlock(); pids = append(pids, pid) },
	}, discard())
	started := func(n int) bool { mu.Lock(); defer mu.Unlock(); return len(pids) == n }
	proctest.Until(t, bound, "it has started", func() bool { return started(1) })
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, bound, "it has started again", func() bool { return started(2) })
	if st := h.State(); st.Restarts != 1 || !strings.Contains(st.LastExit, "killed") {
		t.Errorf("%+v", st)
	}
	h.Stop()
	if pid := h.State().PID; pid != 0 {
		t.Errorf("process %d runs after Stop", pid)
	}
	if err := syscall.Kill(pids[1], 0); err == nil {
		t.Error("the process is still there after Stop")
	}
}

func TestStopEndsAProcessThatWillNot(t *testing.T) {
	out := new(proctest.Output)
	h := supervise.Start(t.Context(), supervise.Process{
		Name: "stubborn", Command: []string{"/bin/sh", "-c", `trap "" TERM; echo ready; while :; do sleep 1; done`}, Output: out, Grace: 200 * time.Millisecond,
	}, discard())
	proctest.Until(t, bound, "it says ready", func() bool { return strings.Contains(out.String(), "ready") })
	done := make(chan struct{})
	go func() { defer close(done); h.Stop() }()
	select {
	case <-done:
	case <-time.After(bound):
		t.Fatal("Stop hangs")
	}
}

func TestBeforeDelaysTheStart(t *testing.T) {
	var mu sync.Mutex
	tries := 0
	out := new(proctest.Output)
	h := supervise.Start(t.Context(), supervise.Process{
		Name: "echo", Command: []string{"/bin/sh", "-c", "echo ran; sleep 60"}, Output: out, Grace: time.Second,
		Before: func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			if tries++; tries < 3 {
				return context.DeadlineExceeded
			}
			return nil
		},
	}, discard())
	defer h.Stop()
	proctest.Until(t, bound, "it says ran", func() bool { return strings.Contains(out.String(), "ran") })
	if mu.Lock(); tries != 3 {
		t.Errorf("%d tries", tries)
	}
	mu.Unlock()
}

func TestLogFileMovesALargeOneAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := supervise.LogFile(path, 5)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != 0 || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if data, err := os.ReadFile(path + ".1"); err != nil || string(data) != "0123456789" {
		t.Errorf("%q, %v", data, err)
	}
}
