package filelog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/group"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
)

// mortal is a file in memory on a machine that dies at one of its operations: of a
// write a part arrives, what was written and not synced is there, not there, or there
// without a piece in the middle, and nothing works afterwards.
type mortal struct {
	data, synced []byte
	left         int // operations until it dies
	part         int // how much of the last write arrives, in percent
}

var errDead = errors.New("the machine is off")

func (m *mortal) dies() bool {
	m.left--
	return m.left < 0
}

func (m *mortal) WriteAt(b []byte, off int64) (int, error) {
	if m.left < 0 {
		return 0, errDead
	}
	if m.dies() {
		b = b[:len(b)*m.part/100]
		m.data = append(m.data[:off:off], b...)
		return len(b), errDead
	}
	m.data = append(m.data[:off:off], b...)
	return len(b), nil
}

func (m *mortal) Truncate(size int64) error {
	if m.left < 0 || m.dies() {
		return errDead
	}
	m.data = m.data[:size]
	return nil
}

func (m *mortal) Sync() error {
	if m.left < 0 || m.dies() {
		return errDead
	}
	m.synced = bytes.Clone(m.data)
	return nil
}

func (*mortal) Close() error { return nil }

// after are the files that the next start may find.
func (m *mortal) after() map[string][]byte {
	out := map[string][]byte{"not synced is lost": m.synced, "all is there": m.data}
	if extra := len(m.data) - len(m.synced); extra > 3 {
		holed := bytes.Clone(m.data)
		clear(holed[len(m.synced)+extra/3 : len(m.synced)+2*extra/3])
		out["a hole"] = holed
		out["half is there"] = m.data[:len(m.synced)+extra/2]
	}
	return out
}

// The machine dies at every step of a history of changes, one by one and several at
// once, and each time the next start has all that was acknowledged, nothing by half,
// and goes on.
func TestDiesAtEveryStep(t *testing.T) {
	t.Parallel()
	for step := 0; ; step++ {
		survived := false
		for _, part := range []int{0, 40, 100} {
			m := &mortal{left: step, part: part}
			acked, all := history(t, m)
			survived = m.left >= 0
			for what, image := range m.after() {
				restarted(t, fmt.Sprintf("step %d, %d %% of the write, %s", step, part, what), image, acked, all)
			}
		}
		if survived {
			if step < 10 {
				t.Fatalf("the history has only %d steps", step)
			}
			return
		}
	}
}

// history makes changes until the machine dies; it returns how many entries were
// acknowledged, and how many there may be at most.
func history(t *testing.T, m *mortal) (acked, all int) {
	t.Helper()
	l := onFile(m)
	defer l.Close()
	for i := range 5 {
		// A token, and its use together with other entries; the committer is played, so
		// that what is in a batch is known.
		changes := []ledger.Change{ledgertest.Put(key(i), "value"), ledgertest.Issue(i), ledgertest.Use(key(i), uint64(4*i+1), i), ledgertest.Issue(i)}
		for _, c := range [][]ledger.Change{changes[:1], changes[1:]} {
			b, err := group.NewBatch(c...)
			must(t, err)
			all += len(c)
			if err := l.commit(b); errors.Is(err, ledger.ErrUnavailable) {
				return acked, all
			} else if err != nil || b.Len() != len(c) {
				t.Fatalf("%d of %d entries are admitted: %v", b.Len(), len(c), err)
			}
			acked += len(c)
		}
	}
	return acked, all
}

// restarted opens what the machine left.
func restarted(t *testing.T, what string, image []byte, acked, all int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "l")
	must(t, os.WriteFile(path, image, 0o600))
	l, err := Open(path, Options{})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer l.Close()
	entries := ledgertest.All(t, l)
	if len(entries) < acked || len(entries) > all {
		t.Fatalf("%s: %d entries, want %d to %d", what, len(entries), acked, all)
	}
	// Token i is there from entry 4i on until its use in entry 4i+2.
	docs, err := l.List(t.Context(), "tokens/")
	must(t, err)
	if want := len(entries)%4 == 1 || len(entries)%4 == 2; want != (len(docs) == 1) || len(docs) > 1 {
		t.Fatalf("%s: %d tokens after %d entries", what, len(docs), len(entries))
	}
	v, err := l.Commit(t.Context(), ledgertest.Issue(100))
	if err != nil || v != uint64(len(entries)+1) {
		t.Fatalf("%s: going on: %d, %v", what, v, err)
	}
	head, err := l.Head(t.Context())
	must(t, err)
	if got, err := Read(path, nil); err != nil || got != head {
		t.Fatalf("%s: the log says %+v, its file %+v, %v", what, head, got, err)
	}
}
