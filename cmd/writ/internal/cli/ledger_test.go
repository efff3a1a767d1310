package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
)

// keptLedger is a state directory as an authority leaves it, and a checkpoint that
// somebody kept when there were fewer entries.
func keptLedger(t *testing.T, entries int) (file, earlier string) {
	t.Helper()
	dir := t.TempDir()
	file, earlier = filepath.Join(dir, "ledger.log"), filepath.Join(t.TempDir(), "kept")
	log, err := filelog.Open(file, filelog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := checkpoint.OpenKey(filepath.Join(dir, "ledger.key"), "example.org/ledger")
	if err != nil {
		t.Fatal(err)
	}
	write := func(path string) {
		t.Helper()
		head, err := log.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		text, err := key.Sign(head)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for n := range entries {
		if _, err := log.Commit(t.Context(), ledgertest.Issue(n)); err != nil {
			t.Fatal(err)
		}
		if n == entries/2 {
			write(earlier)
		}
	}
	write(filepath.Join(dir, "ledger.checkpoint"))
	if err := os.WriteFile(filepath.Join(dir, "ledger.pub"), []byte(key.Verifier+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return file, earlier
}

func TestVerifyLog(t *testing.T) {
	file, earlier := keptLedger(t, 9)
	run := func(args ...string) (int, string) {
		var out bytes.Buffer
		return Main(append([]string{"certs", "verify-log", "--file", file}, args...), &out, &out), out.String()
	}
	if code, out := run("--checkpoint", earlier); code != 0 || !strings.Contains(out, "the first 5 entries are those that example.org/ledger signed") ||
		!strings.Contains(out, "the first 9 entries") || !strings.Contains(out, "OK ") {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	code, out := run("-o", "json")
	var answer audited
	if err := json.Unmarshal([]byte(out), &answer); err != nil || code != 0 || !answer.OK || answer.Size != 9 || len(answer.Root) != 64 || len(answer.Checkpoints) != 1 {
		t.Fatalf("exit code %d, %v:\n%s", code, err, out)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	change := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []int{0, 40, len(good) / 2, len(good) - 2, len(good) - 1} {
		bad := bytes.Clone(good)
		bad[at] ^= 4
		change(bad)
		if code, out := run(); code != 1 || !strings.Contains(out, "NOT OK") {
			t.Errorf("byte %d: exit code %d:\n%s", at, code, out)
		}
	}
	lines := bytes.SplitAfter(good, []byte("\n"))
	change(bytes.Join(lines[:7], nil))
	if code, out := run(); code != 1 || !strings.Contains(out, "the log has 7 entries, and had 9") {
		t.Errorf("cut: exit code %d:\n%s", code, out)
	}
	change(good)
	// Another's key, and another's checkpoint.
	other, _ := keptLedger(t, 2)
	dir := filepath.Dir(other)
	if code, out := run("--key", filepath.Join(dir, "ledger.pub")); code != 1 || !strings.Contains(out, "not signed by example.org/ledger") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if code, out := run("--checkpoint", filepath.Join(dir, "ledger.checkpoint")); code != 1 || !strings.Contains(out, "not signed by") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	for _, beside := range []string{"ledger.checkpoint", "ledger.pub"} {
		if err := os.Remove(filepath.Join(filepath.Dir(file), beside)); err != nil {
			t.Fatal(err)
		}
	}
	if code, out := run(); code != 0 || !strings.Contains(out, "there is no checkpoint to compare it with") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if code, _ := run("--checkpoint", "/nowhere"); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
}

func TestExport(t *testing.T) {
	file, _ := keptLedger(t, 3)
	var out bytes.Buffer
	if code := Main([]string{"certs", "export", "--file", file, "-o", "json"}, &out, &out); code != 0 {
		t.Fatal(out.String())
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, l := range lines {
		var e exported
		if err := json.Unmarshal([]byte(l), &e); err != nil || e.Index != uint64(i) || !strings.Contains(string(e.Entry), `"kind":"issued"`) {
			t.Errorf("line %d: %v: %s", i, err, l)
		}
	}
	if len(lines) != 3 {
		t.Errorf("%d lines, want 3", len(lines))
	}
	out.Reset()
	if code := Main([]string{"certs", "export", "--file", file}, &out, &out); code != 0 || strings.Count(out.String(), "  issued  issue  spiffe://example.org/ns/default/sa/w") != 3 {
		t.Errorf("got %s", out.String())
	}
	if code := Main([]string{"certs", "export", "--file", file, "-o", "xml"}, &out, &out); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
}
