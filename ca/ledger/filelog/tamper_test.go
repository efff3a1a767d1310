package filelog

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
)

// audit reads a file as somebody does who has kept a head of the log.
func audit(path string, known ledger.Head) error {
	a := checkpoint.Audit{Known: []ledger.Head{known}}
	if _, err := Read(path, a.Add); err != nil {
		return err
	}
	_, err := a.End()
	return err
}

// Whatever byte of the file is changed, the reader finds it, the first and the last
// one included.
func TestAnyChangedByteIsFound(t *testing.T) {
	t.Parallel()
	data, _ := written(t, 6)
	path := filepath.Join(t.TempDir(), "l")
	must(t, os.WriteFile(path, data, 0o600))
	head, err := Read(path, nil)
	must(t, err)
	must(t, audit(path, head))
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // which bytes are tried
	for at := range data {
		bad := data[at] ^ byte(1+random.IntN(255))
		alter(t, path, at, bad)
		if err := audit(path, head); err == nil {
			t.Fatalf("byte %d was changed from %q to %q, and nobody noticed", at, data[at], bad)
		}
		alter(t, path, at, data[at])
	}
	for _, cut := range []int{1, 2, len(data) / 2, len(data) - 1} {
		must(t, os.WriteFile(path, data[:cut], 0o600))
		if err := audit(path, head); err == nil {
			t.Fatalf("the file was cut at %d, and nobody noticed", cut)
		}
	}
	must(t, os.WriteFile(path, append(bytes.Clone(data), 0), 0o600))
	if err := audit(path, head); err == nil {
		t.Fatal("a byte was appended, and nobody noticed")
	}
}

// Somebody alters an entry, or a document, and computes the checksums anew: then the
// head does not agree, or the document is not the one that its entry names.
func TestForgedLinesAreFound(t *testing.T) {
	data, _ := written(t, 6)
	path := filepath.Join(t.TempDir(), "l")
	must(t, os.WriteFile(path, data, 0o600))
	head, err := Read(path, nil)
	must(t, err)
	var lines []line
	for b := range bytes.SplitSeq(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")) {
		l, err := parseLine(b)
		must(t, err)
		lines = append(lines, l)
	}
	forge := func(change func([]line) []line) error {
		mine := make([]line, 0, len(lines))
		for _, l := range lines {
			l.record.Leaf, l.record.Values = bytes.Clone(l.record.Leaf), bytes.Clone(l.record.Values)
			mine = append(mine, l)
		}
		var out []byte
		for _, l := range change(mine) {
			out = appendLine(out, l)
		}
		must(t, os.WriteFile(path, out, 0o600))
		return audit(path, head)
	}
	must(t, forge(func(l []line) []line { return l }))
	replace := func(l *ledger.Record, old, with string) {
		l.Leaf = bytes.Replace(l.Leaf, []byte(old), []byte(with), 1)
		l.Values = bytes.Replace(l.Values, []byte(old), []byte(with), 1)
	}
	for what, err := range map[string]error{
		"another subject":  forge(func(l []line) []line { replace(&l[1].record, "sa/w1", "sa/w2"); return l }),
		"another document": forge(func(l []line) []line { replace(&l[3].record, `"dmFsdWU="`, `"dmFsdWf="`); return l }),
		"no document":      forge(func(l []line) []line { l[3].record.Values = nil; return l }),
		"last one gone":    forge(func(l []line) []line { return l[:5] }),
		"two exchanged": forge(func(l []line) []line {
			l[0].record.Leaf, l[1].record.Leaf = l[1].record.Leaf, l[0].record.Leaf
			return l
		}),
		"one left out": forge(func(l []line) []line {
			l = append(l[:1], l[2:]...)
			for i := range l {
				l[i].record.Index, l[i].batch = uint64(i), uint64(i)
			}
			return l
		}),
	} {
		if err == nil {
			t.Errorf("%s: nobody noticed", what)
		}
	}
}
