package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// tmpfs mounts a small file system of its own, which needs root.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700")
	if errors.Is(err, syscall.EPERM) && os.Getenv("CI") != "true" {
		t.Skip("mounting a small file system needs root")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func TestReadOnlyStateDirectory(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", newEcho(t, "a"))})
	state := tmpfs(t, "1m")
	if err := syscall.Mount("", state, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	fails(t, dir, nil, []string{"--state", state}, "state directory", "read-only file system", "--state")
}

// TestFullDisk fills the disk below a running mesh: traffic goes on, and when
// there is room again everything does, with nothing lost.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	state := tmpfs(t, "8m")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "mtls.yaml": strict, "policy.yaml": denyPath("/0")}), "--state", state)
	before, err := os.ReadFile(filepath.Join(state, "ca", "bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	fill := filepath.Join(state, "fill")
	if err := fillUp(fill); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if got := m.get("a-1", "http://b:8000/"); got.status != 200 {
			t.Fatalf("with a full disk: %s", got)
		}
	}
	out, code := m.writ("certs", "ls", m.dir, "--state", state)
	if code != 0 {
		t.Errorf("the ledger cannot be read with a full disk: %s", out)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	write(t, m.dir, "policy.yaml", denyPath("/1"))
	proctest.Eventually(t, 10*time.Second, func() error {
		if got := m.get("a-1", "http://b:8000/1"); got.status != 403 {
			return fmt.Errorf("an edit after the disk was full: %s", got)
		}
		return nil
	})
	m.kill("writ-ca")
	proctest.Eventually(t, 10*time.Second, func() error {
		out, code := m.writ("certs", "ls", m.dir, "--state", state)
		if code != 0 {
			return errors.New(out)
		}
		return nil
	})
	if after, err := os.ReadFile(filepath.Join(state, "ca", "bundle.pem")); err != nil || string(after) != string(before) {
		t.Errorf("the root has changed (%v)", err)
	}
}

// fillUp writes until there is no room.
func fillUp(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 4096)
	for {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
