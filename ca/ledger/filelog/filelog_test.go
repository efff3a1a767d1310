package filelog

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/docstore"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/internal/proctest"
)

func open(t testing.TB, path string) *Log {
	t.Helper()
	l, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestConformance(t *testing.T) {
	ledgertest.Run(t,
		func(t *testing.T) ledger.Store { return open(t, filepath.Join(t.TempDir(), "l")) },
		func(t *testing.T, s ledger.Store) ledger.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, s.(*Log).path) //nolint:forcetypeassert // this suite's own store
		})
}

// written gives the bytes of a log of n records, each a batch of its own, and
// where each record begins; the last offset is the end.
func written(t testing.TB, n int) ([]byte, []int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "l")
	l := open(t, path)
	offsets := []int{0}
	for i := range n {
		var err error
		switch i % 5 {
		case 3:
			_, err = l.Commit(t.Context(), ledgertest.Put(key(i), "value"))
		case 4:
			_, err = l.Commit(t.Context(), ledgertest.Use(key(i-1), uint64(i), i))
		default:
			err = issue(t, l, i)
		}
		if err != nil {
			t.Fatal(err)
		}
		offsets = append(offsets, int(l.size))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data, offsets
}

func key(n int) string { return fmt.Sprintf("tokens/%d", n) }

func issue(t testing.TB, l *Log, n int) error {
	t.Helper()
	_, err := l.Commit(t.Context(), ledgertest.Issue(n))
	return err
}

// near tells the offsets worth trying, since each costs several syncs: around the
// ends of records, and every so often between.
func near(offsets []int, at int) bool {
	for _, o := range offsets {
		if d := at - o; d >= -2 && d <= 2 {
			return true
		}
	}
	return at%41 == 0
}

// Wherever the file is cut, all records before the cut are there, only the torn
// one is gone, and the ledger goes on.
func TestTornTail(t *testing.T) {
	data, offsets := written(t, 6)
	path := filepath.Join(t.TempDir(), "l")
	for cut := range len(data) {
		if !near(offsets, cut) {
			continue
		}
		if err := os.WriteFile(path, data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		whole := 0
		for whole+1 < len(offsets) && offsets[whole+1] <= cut {
			whole++
		}
		l := open(t, path)
		if got := int(l.size); got != offsets[whole] || l.tree.Size() != uint64(whole) {
			t.Fatalf("cut at %d: %d bytes and %d entries are left, want %d and %d", cut, got, l.tree.Size(), offsets[whole], whole)
		}
		if err := issue(t, l, 100); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		again := open(t, path)
		certs := ledgertest.All(t, again)
		if len(certs) != whole+1 || certs[whole].Serial != ledgertest.Certificate(100).Serial {
			t.Fatalf("cut at %d: the ledger did not go on", cut)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// After a power cut the end may also be blocks of zeros, or garbage.
func TestTornTailOfOtherBytes(t *testing.T) {
	data, _ := written(t, 3)
	for name, tail := range map[string][]byte{
		"zeros": make([]byte, 3*4096), "newlines": bytes.Repeat([]byte("\n"), 5000), "long": bytes.Repeat([]byte("x"), 3*maxLine),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "l")
			if err := os.WriteFile(path, append(bytes.Clone(data), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			l := open(t, path)
			defer l.Close()
			if l.tree.Size() != 3 {
				t.Fatalf("%d entries are left, want 3", l.tree.Size())
			}
			if kept, err := os.ReadFile(path + ".torn"); err != nil || !bytes.Equal(kept, tail) {
				t.Fatalf("the torn end was not kept: %v", err)
			}
		})
	}
}

// A batch of which a middle block did not reach the disk was never durable.
func TestTornBatch(t *testing.T) {
	var data []byte
	for i := range 5 {
		data = appendLine(data, line{batch: min(uint64(i), 1), record: ledger.Record{Index: uint64(i), Leaf: []byte(`{"kind":"x"}`)}})
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	lines[2] = make([]byte, len(lines[2]))
	path := filepath.Join(t.TempDir(), "l")
	if err := os.WriteFile(path, bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, path)
	defer l.Close()
	if l.tree.Size() != 2 {
		t.Fatalf("%d entries are left, want 2", l.tree.Size())
	}
}

// One changed byte in any record but the last is found, named with file and
// offset, and nothing is cut off.
func TestDamageInTheMiddle(t *testing.T) {
	t.Parallel()
	data, offsets := written(t, 4)
	path := filepath.Join(t.TempDir(), "l")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for at := range offsets[3] {
		bad := bytes.Clone(data)
		bad[at] ^= 0x20
		alter(t, path, at, bad[at])
		record := 0
		for offsets[record+1] <= at {
			record++
		}
		_, err := Open(path, Options{})
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%s is damaged at offset %d,", path, offsets[record])) {
			t.Fatalf("byte %d: got %v", at, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, bad) {
			t.Fatal("the damaged file was changed")
		}
		alter(t, path, at, data[at])
	}
}

// alter changes one byte in place: file systems write out what is truncated and written
// anew, which takes milliseconds each time.
func alter(t *testing.T, path string, at int, to byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{to}, int64(at))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestMissingOrRepeatedRecord(t *testing.T) {
	data, offsets := written(t, 4)
	for name, bad := range map[string][]byte{
		"missing":  append(bytes.Clone(data[:offsets[1]]), data[offsets[2]:]...),
		"repeated": append(bytes.Clone(data[:offsets[2]]), data[offsets[1]:]...),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "l")
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "damaged at offset") {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// badDisk is a file in memory that fails on demand. What was not synced is lost
// when the disk crashes.
type badDisk struct {
	mu                  sync.Mutex
	data                []byte
	synced              []byte
	syncs               int
	failWrite, failSync error
	room                int // bytes that fit; 0 means any number
	hold                chan struct{}
}

func (d *badDisk) WriteAt(b []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failWrite != nil {
		return 0, d.failWrite
	}
	n, err := len(b), error(nil)
	if d.room > 0 && int(off)+n > d.room {
		n, err = max(d.room-int(off), 0), unix.ENOSPC
	}
	d.data = append(d.data[:off:off], b[:n]...)
	return n, err
}

func (d *badDisk) Truncate(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failWrite != nil {
		return d.failWrite
	}
	d.data = d.data[:size]
	return nil
}

func (d *badDisk) Sync() error {
	if d.hold != nil {
		<-d.hold
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	if d.failSync != nil {
		return d.failSync
	}
	d.synced = bytes.Clone(d.data)
	return nil
}

func (*badDisk) Close() error { return nil }

func (d *badDisk) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func onDisk(d *badDisk) *Log { return onFile(d) }

func onFile(f file) *Log { return start("disk", f, contents{docs: docstore.New()}, Options{}) }

func TestDiskFailsAndRecovers(t *testing.T) {
	for name, fault := range map[string]struct{ begin, end func(*badDisk) }{
		"full":      {func(d *badDisk) { d.room = len(d.synced) + 10 }, func(d *badDisk) { d.room = 0 }},
		"read-only": {func(d *badDisk) { d.failWrite = unix.EROFS }, func(d *badDisk) { d.failWrite = nil }},
		"sync":      {func(d *badDisk) { d.failSync = unix.EIO }, func(d *badDisk) { d.failSync = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			d := &badDisk{}
			l := onDisk(d)
			defer l.Close()
			ctx := t.Context()
			commit := func(c ledger.Change) error { _, err := l.Commit(ctx, c); return err }
			must(t, commit(ledgertest.Put(key(1), "a")))
			must(t, commit(ledgertest.Issue(0)))
			d.set(func() { fault.begin(d) })
			for range 3 {
				for what, err := range map[string]error{
					"entry": commit(ledgertest.Issue(1)), "use": commit(ledgertest.Use(key(1), 1, 2)),
					"put": commit(ledgertest.Put(key(2), "b")), "check": l.Check(ctx),
				} {
					if !errors.Is(err, ledger.ErrUnavailable) {
						t.Fatalf("%s: got %v", what, err)
					}
				}
			}
			d.set(func() { fault.end(d) })
			must(t, l.Check(ctx))
			must(t, commit(ledgertest.Use(key(1), 1, 3)))
			c, err := scan(bytes.NewReader(d.synced), "disk", nil)
			must(t, err)
			if c.next != 3 || c.size != int64(len(d.synced)) || len(c.docs.List("")) != 0 {
				t.Fatalf("got %+v of %q", c, d.synced)
			}
			head, err := l.Head(ctx)
			must(t, err)
			if want, err := c.tree.Head(); err != nil || head != want {
				t.Fatalf("the log says %+v, its file %+v (%v)", head, want, err)
			}
		})
	}
}

func TestManyRecordsShareOneSync(t *testing.T) {
	d := &badDisk{hold: make(chan struct{})}
	l := onDisk(d)
	defer l.Close()
	release := sync.OnceFunc(func() { close(d.hold) })
	defer release()
	const records = 200
	var wg sync.WaitGroup
	for n := range records {
		wg.Go(func() {
			if err := issue(t, l, n); err != nil {
				t.Error(err)
			}
		})
	}
	// The first sync is held until all others have queued up behind it.
	proctest.Until(t, 10*time.Second, "all records are queued", func() bool {
		// The committer may have taken more than one at first.
		d.mu.Lock()
		taken := bytes.Count(d.data, []byte("\n"))
		d.mu.Unlock()
		return l.queue.Waiting() >= records-1 || taken+l.queue.Waiting() == records
	})
	release()
	wg.Wait()
	if d.syncs > 2 {
		t.Fatalf("%d syncs for %d records, want 2", d.syncs, records)
	}
}

// What was acknowledged survives a crash at any moment, the rest may or may not.
func TestCrashKeepsWhatWasAcknowledged(t *testing.T) {
	d := &badDisk{}
	l := onDisk(d)
	defer l.Close()
	var acked sync.Map
	var count atomic.Int64
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := range 50 {
				c := ledgertest.Certificate(w*50 + n)
				if err := issue(t, l, w*50+n); err != nil {
					t.Error(err)
				}
				acked.Store(c.Serial, true)
				count.Add(1)
			}
		})
	}
	for count.Load() < 400 {
		// The crash: what is on the disk now, with a piece of what is not synced yet.
		var before []string
		acked.Range(func(k, _ any) bool { before = append(before, k.(string)); return true }) //nolint:forcetypeassert // stored above
		var image []byte
		d.set(func() {
			image = bytes.Clone(d.synced)
			if extra := len(d.data) - len(d.synced); extra > 0 {
				image = append(image, d.data[len(d.synced):len(d.synced)+extra/2]...)
			}
		})
		c, err := scan(bytes.NewReader(image), "disk", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, serial := range before {
			if !bytes.Contains(image[:c.size], []byte(`"serial":"`+serial+`"`)) {
				t.Fatalf("acknowledged record %s is lost", serial)
			}
		}
	}
	wg.Wait()
}

func TestClosed(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "l"))
	must(t, l.Close())
	must(t, l.Close())
	if err := issue(t, l, 1); !errors.Is(err, ledger.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
}

func TestMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l")
	must(t, open(t, path).Close())
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("got %v, %v", info.Mode(), err)
	}
}

// A file as the first versions wrote it is named, and stays as it is.
func TestOldFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l")
	old := []byte("00000000 0 0 cert {}")
	copy(old, fmt.Sprintf("%08x", crc32.Checksum(old[9:], crc32.MakeTable(crc32.Castagnoli))))
	must(t, os.WriteFile(path, append(old, '\n'), 0o600))
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), path+": it is of an old format") {
		t.Fatalf("got %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, append(old, '\n')) {
		t.Fatal("the file was changed")
	}
}

// What is taken for a record is written the same way again.
func FuzzParseLine(f *testing.F) {
	for _, r := range []ledger.Record{{Index: 12, Leaf: []byte(`{"a":1}`)}, {Index: 12, Leaf: []byte(`{"a b":1}`), Values: []byte(`{"a":"b"}`)}} {
		f.Add(bytes.TrimSuffix(appendLine(nil, line{batch: 10, record: r}), []byte("\n")))
	}
	f.Add([]byte("00000000 0 0 {}"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLine(b)
		if err == nil && !bytes.Equal(appendLine(nil, l), append(bytes.Clone(b), '\n')) {
			t.Fatalf("%q is read but not written", b)
		}
	})
}

// Any bytes are a ledger, a ledger with a torn end, or an error; never a panic.
func FuzzScan(f *testing.F) {
	data, _ := written(f, 5)
	f.Add(data)
	f.Add(data[:len(data)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := scan(bytes.NewReader(b), "f", nil)
		if err != nil {
			return
		}
		again, err := scan(bytes.NewReader(b[:c.size]), "f", nil)
		if err != nil || again.size != c.size || again.next != c.next {
			t.Fatalf("what is left of the file is not a ledger: %v", err)
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
