package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBackupAndRestore(t *testing.T) {
	file, _ := keptLedger(t, 4)
	saved, restored := filepath.Join(t.TempDir(), "ca.tar"), filepath.Join(t.TempDir(), "ca")
	run := func(args ...string) (int, string) {
		var out bytes.Buffer
		return Main(append([]string{"certs"}, args...), &out, &out), out.String()
	}
	if code, out := run("backup", "--ca-state", filepath.Dir(file), saved); code != 0 {
		t.Fatal(out)
	}
	if info, err := os.Stat(saved); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
	if code, out := run("backup", "--ca-state", filepath.Dir(file), saved); code != 1 || !strings.Contains(out, "is there already") {
		t.Errorf("over an older backup: exit code %d: %s", code, out)
	}
	if code, out := run("backup", "--ca-state", t.TempDir(), filepath.Join(t.TempDir(), "x")); code != 1 || !strings.Contains(out, "nothing of an authority") {
		t.Errorf("of nothing: exit code %d: %s", code, out)
	}
	if code, out := run("restore", "--ca-state", restored, saved); code != 0 || !strings.Contains(out, "is not in the ledger") {
		t.Fatalf("exit code %d: %s", code, out)
	}
	if code, out := run("verify-log", "--file", filepath.Join(restored, "ledger.log")); code != 0 || !strings.Contains(out, "the first 5 entries") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if code, out := run("restore", "--ca-state", restored, saved); code != 1 || !strings.Contains(out, "is not empty") {
		t.Errorf("over what is there: exit code %d: %s", code, out)
	}
}
