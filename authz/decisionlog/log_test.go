package decisionlog_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/internal/proctest"
)

// sink remembers the ids that it took, and is away while away says so.
type sink struct {
	mu   sync.Mutex
	away error
	got  map[string]int
}

func (s *sink) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
}

func (s *sink) Send(_ context.Context, batch decisionlog.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away != nil {
		return s.away
	}
	z, err := gzip.NewReader(bytes.NewReader(batch.Packed))
	if err != nil {
		return err
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return err
	}
	var records []decisionlog.Record
	if err := json.Unmarshal(text, &records); err != nil {
		return err
	}
	if n := bytes.Count(batch.Lines, []byte("\n")); n != len(records) {
		return fmt.Errorf("%d records in %d lines", len(records), n)
	}
	for _, r := range records {
		s.got[r.ID]++
	}
	return nil
}

// count gives how many records of a kind came, each once or it is an error.
func (s *sink) count(t *testing.T, prefix string) int {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for id, times := range s.got {
		if times != 1 {
			t.Errorf("%s came %d times", id, times)
		}
		if id[:1] == prefix {
			n++
		}
	}
	return n
}

type fixture struct {
	*decisionlog.Log
	sink    *sink
	metrics *prometheus.Registry
	stop    func()
}

func open(t testing.TB, o decisionlog.Options) *fixture {
	t.Helper()
	f := &fixture{sink: &sink{got: map[string]int{}}, metrics: prometheus.NewRegistry()}
	o.Metrics, o.Log = f.metrics, slog.New(slog.DiscardHandler)
	if o.Sink == nil {
		o.Sink = f.sink
	}
	if o.Flush == 0 {
		o.Flush = time.Second
	}
	if o.SpoolBytes == 0 {
		o.SpoolBytes = 64 << 20
	}
	l, err := decisionlog.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	f.Log = l
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
	return f
}

// dropped sums writ_authz_decisions_dropped_total of a kind.
func (f *fixture) dropped(t *testing.T, kind string) int {
	t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		if family.GetName() != "writ_authz_decisions_dropped_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "kind" && l.GetValue() == kind {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return int(sum)
}

func refusal(i int) *decisionlog.Record {
	return &decisionlog.Record{
		ID: "r" + strconv.Itoa(i), Decision: decisionlog.Refuse, By: decisionlog.ByAuthz, Time: time.Now(), Rule: "RegoPolicy default/office-hours",
		From: "spiffe://cluster.local/ns/default/sa/web", To: "spiffe://cluster.local/ns/default/sa/ratings", Method: "GET", Path: "/ratings/" + strconv.Itoa(i), Latency: 80,
	}
}

func allow(i int) *decisionlog.Record {
	return &decisionlog.Record{ID: "a" + strconv.Itoa(i), Decision: decisionlog.Allow, By: decisionlog.ByAuthz, Time: time.Now(), Method: "GET", Path: "/"}
}

// TestSinkAwayTenMinutes: the sink is away for ten minutes, in which 5,000 decisions
// come in a second, again and again, half of them refusals. Each refusal arrives,
// once, when it is back; no decision is lost without being counted; and what is in
// memory does not grow.
func TestSinkAwayTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, decisionlog.Options{AllowPercent: 100, Spool: filepath.Join(t.TempDir(), "spool")})
		f.sink.set(errors.New("away"))
		const seconds, a2nd = 5, 5000
		var first, last uint64
		for i := range seconds {
			for j := range a2nd / 2 {
				f.Add(allow(i*a2nd + j))
				f.Add(refusal(i*a2nd + j))
			}
			pass(10 * time.Minute / seconds)
			synctest.Wait()
			if last = heap(); i == 0 {
				first = last
			}
		}
		if grown := int64(last) - int64(first); grown > 2<<20 {
			t.Errorf("%d bytes more in memory after ten minutes", grown)
		}
		if f.sink.count(t, "r") != 0 {
			t.Error("a sink that is away took something")
		}
		f.sink.set(nil)
		pass(time.Minute)
		synctest.Wait()
		if got := f.sink.count(t, "r"); got != seconds*a2nd/2 || f.dropped(t, "refusal") != 0 {
			t.Errorf("%d refusals arrived and %d were dropped of %d", got, f.dropped(t, "refusal"), seconds*a2nd/2)
		}
		if got, lost := f.sink.count(t, "a"), f.dropped(t, "allow"); got+lost != seconds*a2nd/2 {
			t.Errorf("%d allowed decisions arrived and %d were dropped of %d", got, lost, seconds*a2nd/2)
		}
		f.stop()
	})
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestFullOfRefusals: allowed decisions go for refusals; with nothing but refusals
// the oldest stay, new ones are dropped once the queue is full, and who can wait
// waits. When the sink is back, everything goes on.
func TestFullOfRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, decisionlog.Options{AllowPercent: 100, SpoolBytes: 400, Spool: filepath.Join(t.TempDir(), "spool")})
		f.sink.set(errors.New("away"))
		f.Add(allow(0))
		pass(5 * time.Second)
		n := 0
		for range 40 { // a batch each, until nothing moves any more
			f.Add(refusal(n))
			n++
			pass(5 * time.Second)
			synctest.Wait()
		}
		if f.dropped(t, "allow") != 1 || f.dropped(t, "refusal") != 0 {
			t.Errorf("dropped %d allowed decisions and %d refusals, want 1 and 0", f.dropped(t, "allow"), f.dropped(t, "refusal"))
		}
		for range 9000 {
			f.Add(refusal(n))
			n++
		}
		lost := f.dropped(t, "refusal")
		if lost == 0 || lost > 1000 {
			t.Errorf("dropped %d refusals of a full queue", lost)
		}
		waited := make(chan error, 1)
		report := refusal(n)
		go func() { waited <- f.Wait(t.Context(), report) }()
		n++
		pass(time.Minute)
		synctest.Wait()
		select {
		case err := <-waited:
			t.Errorf("a report did not wait: %v", err)
		default:
		}
		f.sink.set(nil)
		pass(10 * time.Minute)
		if err := <-waited; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := f.sink.count(t, "r"); got != n-lost || f.dropped(t, "refusal") != lost {
			t.Errorf("%d refusals arrived of %d without the %d that were dropped", got, n, lost)
		}
		f.stop()
	})
}

// TestSampled: allowed decisions are sampled, refusals and would-be refusals never.
func TestSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, decisionlog.Options{AllowPercent: 0})
		for i := range 100 {
			f.Add(allow(i))
			f.Add(refusal(i))
			observed := allow(i)
			observed.ID, observed.Observed = "o"+strconv.Itoa(i), []decisionlog.Observation{{Rule: "RegoPolicy default/x"}}
			f.Add(observed)
		}
		f.stop()
		if a, r, o := f.sink.count(t, "a"), f.sink.count(t, "r"), f.sink.count(t, "o"); a != 0 || r != 100 || o != 100 || f.dropped(t, "allow") != 100 {
			t.Errorf("%d allowed, %d refused, %d observed; %d dropped", a, r, o, f.dropped(t, "allow"))
		}
	})
}

// TestGoesOnAfterDeath: what a process left on disk is sent by the next one; a batch
// that is damaged is left out and its records are counted.
func TestGoesOnAfterDeath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	synctest.Test(t, func(t *testing.T) {
		f := open(t, decisionlog.Options{Spool: dir})
		f.sink.set(errors.New("away"))
		for i := range 3 {
			for j := range 10 {
				f.Add(refusal(10*i + j))
			}
			pass(5 * time.Second)
		}
		f.stop()
	})
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatal(len(entries), err)
	}
	torn := filepath.Join(dir, entries[1].Name())
	if err := os.Truncate(torn, 100); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		f := open(t, decisionlog.Options{Spool: dir})
		pass(5 * time.Second)
		synctest.Wait()
		if got, lost := f.sink.count(t, "r"), f.dropped(t, "refusal"); got != 20 || lost != 10 {
			t.Errorf("%d arrived, %d were dropped; want 20 and 10", got, lost)
		}
		f.stop()
	})
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%d files are left, %v", len(entries), err)
	}
}

// TestSinkThatNeverTakes: a batch that a sink will never take does not hold up the
// others.
func TestSinkThatNeverTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, decisionlog.Options{})
		f.sink.set(&decisionlog.RefusedError{Err: errors.New("too large")})
		f.Add(refusal(0))
		pass(5 * time.Second)
		f.sink.set(nil)
		f.Add(refusal(1))
		f.stop()
		if got, lost := f.sink.count(t, "r"), f.dropped(t, "refusal"); got != 1 || lost != 1 {
			t.Errorf("%d arrived, %d were dropped", got, lost)
		}
	})
}

// tight is a sink that takes so many records at once, and never some of them.
type tight struct {
	sink

	most  int
	never string
}

func (s *tight) Send(ctx context.Context, b decisionlog.Batch) error {
	if bytes.Count(b.Lines, []byte("\n")) > s.most || bytes.Contains(b.Lines, []byte(s.never)) {
		return &decisionlog.RefusedError{Err: errors.New("too large"), TooLarge: true}
	}
	return s.sink.Send(ctx, b)
}

// TestTooLarge: what a sink finds too large comes in parts, and what it finds too large
// by itself is counted.
func TestTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tight{sink: sink{got: map[string]int{}}, most: 7, never: `"r13"`}
		f := open(t, decisionlog.Options{Sink: s})
		for i := range 100 {
			f.Add(refusal(i))
		}
		pass(3 * time.Second)
		f.Add(refusal(13)) // alone
		f.stop()
		if got, lost := s.count(t, "r"), f.dropped(t, "refusal"); got != 99 || lost != 2 {
			t.Errorf("%d arrived, %d were dropped, want 99 and 2", got, lost)
		}
	})
}

// TestUnreadableBatch: a batch that cannot be read holds up the others for some seconds
// only, and is left to the next process.
func TestUnreadableBatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	synctest.Test(t, func(t *testing.T) {
		f := open(t, decisionlog.Options{Spool: dir, RefusalWait: time.Minute})
		f.sink.set(errors.New("away"))
		f.Add(refusal(0))
		pass(3 * time.Second)
		batches, err := filepath.Glob(filepath.Join(dir, "0-*"))
		if err != nil || len(batches) != 1 {
			t.Fatalf("in the spool: %q %v", batches, err)
		}
		kept := filepath.Join(filepath.Dir(dir), "kept")
		if err := errors.Join(os.Rename(batches[0], kept), os.Mkdir(batches[0], 0o700)); err != nil { // a folder cannot be read
			t.Fatal(err)
		}
		f.Add(refusal(1))
		f.sink.set(nil)
		pass(2 * time.Minute)
		f.stop()
		if got, lost := f.sink.count(t, "r"), f.dropped(t, "refusal"); got != 1 || lost != 1 {
			t.Errorf("%d arrived and %d are counted, want 1 and 1", got, lost)
		}
		if err := errors.Join(os.Remove(batches[0]), os.Rename(kept, batches[0])); err != nil {
			t.Fatal(err)
		}
		next := open(t, decisionlog.Options{Spool: dir})
		next.stop()
		if got := next.sink.count(t, "r"); got != 1 {
			t.Errorf("%d arrived of the next process, want 1", got)
		}
	})
}

// TestLeftWaitsForRoom: refusals that an earlier process left while the spool was full
// wait in their journals until it is not, and none is dropped.
func TestLeftWaitsForRoom(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	synctest.Test(t, func(t *testing.T) {
		const n = 8
		away := errors.New("away")
		first := open(t, decisionlog.Options{Spool: dir, SpoolBytes: 1, Flush: time.Millisecond, RefusalWait: time.Minute})
		first.sink.set(away)
		for i := range n {
			first.Add(refusal(i))
			pass(10 * time.Millisecond) // one batch finds room, the others none
		}
		first.stop()
		f := open(t, decisionlog.Options{Spool: dir, SpoolBytes: 1, RefusalWait: time.Minute})
		f.sink.set(away)
		f.Add(refusal(n))
		pass(5 * time.Minute)
		if left, err := filepath.Glob(filepath.Join(dir, "journal-*")); err != nil || len(left) < 2 {
			t.Errorf("waiting: %q %v", left, err)
		}
		f.sink.set(nil)
		pass(5 * time.Minute)
		f.stop()
		f.sink.mu.Lock()
		defer f.sink.mu.Unlock()
		if got, lost := len(f.sink.got), first.dropped(t, "refusal")+f.dropped(t, "refusal"); got != n+1 || lost != 0 {
			t.Errorf("%d refusals of %d arrived, %d were dropped", got, n+1, lost)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("%d files are left, %v", len(entries), err)
		}
	})
}

// TestJournalHoldsUpNoOther: a journal that cannot be taken waits by itself.
func TestJournalHoldsUpNoOther(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	inItsPlace := filepath.Join(dir, "0-0000000000000001-1.json.gz") // a folder, which no file replaces
	if err := os.MkdirAll(inItsPlace, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("journal-%016d.jsonl", i+1)), fmt.Appendf(nil, "{\"decision_id\": \"r%d\"}\n", i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		for _, want := range []int{2, 1} {
			f := open(t, decisionlog.Options{Spool: dir})
			f.stop()
			if got := f.sink.count(t, "r"); got != want {
				t.Errorf("%d refusals arrived, want %d", got, want)
			}
			if err := os.RemoveAll(inItsPlace); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestLeftIsBounded: what waits beside a full spool is no larger than it, and what is
// dropped of it is counted; with room everything is taken, each record once.
func TestLeftIsBounded(t *testing.T) {
	const records, large = 11, 64 << 10 // 704 KiB each, of which the least bound lets one wait
	for name, c := range map[string]struct {
		spool    int64
		journals []int // of so many bytes in each record
		lost     int
	}{
		"full": {1, []int{1, large, large}, records}, // the first finds room
		"room": {64 << 20, []int{1, 1, 1}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "spool")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for i, size := range c.journals {
				var text bytes.Buffer
				for j := range records {
					fmt.Fprintf(&text, "{\"decision_id\": \"r%d-%d\", \"reason\": %q}\n", i, j, strings.Repeat("x", size))
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("journal-%016d.jsonl", i+1)), text.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				f := open(t, decisionlog.Options{Spool: dir, SpoolBytes: c.spool})
				pass(time.Minute)
				f.stop()
				if got, lost := f.sink.count(t, "r"), f.dropped(t, "refusal"); lost != c.lost || got != len(c.journals)*records-lost {
					t.Errorf("%d arrived and %d were dropped, want %d dropped of %d", got, lost, c.lost, len(c.journals)*records)
				}
			})
		})
	}
}

// TestRecordsAreBounded: what a caller sends does not make a record large.
func TestRecordsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		huge := string(bytes.Repeat([]byte("x"), 1<<20))
		r := refusal(0)
		r.Path, r.Host, r.Method, r.Reason, r.RequestID, r.Token = huge, huge, huge, huge, huge, huge
		r.Inputs = map[string]string{}
		for i := range 1000 {
			r.Inputs[strconv.Itoa(i)] = huge
			r.Policies = append(r.Policies, "RegoPolicy default/"+strconv.Itoa(i))
			r.Observed = append(r.Observed, decisionlog.Observation{Rule: "RegoPolicy default/" + strconv.Itoa(i)})
		}
		size := 0
		l, err := decisionlog.Open(decisionlog.Options{
			Flush: time.Second, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
			Each: func(r *decisionlog.Record) {
				b, err := json.Marshal(r)
				if err != nil {
					t.Error(err)
				}
				size = len(b)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		l.Add(r)
		cancel()
		if err := l.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if size == 0 || size > 16<<10 {
			t.Errorf("the record has %d bytes", size)
		}
	})
}

// BenchmarkRecord is the cost of a record, behind the decision.
func BenchmarkRecord(b *testing.B) {
	l, err := decisionlog.Open(decisionlog.Options{
		Sink: &sink{got: map[string]int{}, away: errors.New("away")}, Spool: b.TempDir(), SpoolBytes: 1 << 30, Flush: time.Second, AllowPercent: 100,
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	i := 0
	for b.Loop() {
		if err := l.Wait(ctx, refusal(i)); err != nil {
			b.Fatal(err)
		}
		i++
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// pass lets made time go by.
func pass(d time.Duration) { <-time.NewTimer(d).C }

// TestFullDisk: while the disk takes no batch nothing is lost but what the queue has no
// room for, and that is counted; when there is room again, everything goes on.
//
// The limit is a whole process's, so that the test runs in one of its own.
func TestFullDisk(t *testing.T) {
	const own = "DECISIONLOG_FULL_DISK"
	if os.Getenv(own) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFullDisk$")
		cmd.Env = append(os.Environ(), own+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	dir := filepath.Join(t.TempDir(), "spool")
	lift := limitFiles(t, 100) // bytes; a batch has more
	synctest.Test(t, func(t *testing.T) {
		f := open(t, decisionlog.Options{AllowPercent: 100, Spool: dir})
		for i := range 2000 {
			f.Add(allow(i))
			f.Add(refusal(i))
		}
		pass(time.Minute)
		synctest.Wait()
		if f.sink.count(t, "r")+f.sink.count(t, "a") != 0 {
			t.Fatal("something was kept on a full disk")
		}
		if lost := f.dropped(t, "refusal"); lost != 0 {
			t.Errorf("%d refusals were dropped", lost)
		}
		lift()
		pass(time.Minute)
		synctest.Wait()
		if got := f.sink.count(t, "r"); got != 2000 {
			t.Errorf("%d refusals arrived of 2000", got)
		}
		if got, lost := f.sink.count(t, "a"), f.dropped(t, "allow"); got+lost != 2000 {
			t.Errorf("%d allowed decisions arrived and %d were dropped of 2000", got, lost)
		}
		f.stop()
	})
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%d files are left, %v", len(entries), err)
	}
}

// limitFiles has the kernel take no file of more bytes from this process, as a full
// disk does not, until lift is called or the test ends.
func limitFiles(t *testing.T, bytes uint64) (lift func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: bytes, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	lift = sync.OnceFunc(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(lift)
	return lift
}

// TestJournalOutlivesProcess: a refusal is on disk when Add returns, an allowed decision
// is not; the next process sends it. A log that ends in good order leaves nothing.
func TestJournalOutlivesProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	f := open(t, decisionlog.Options{Spool: dir, AllowPercent: 100, Flush: time.Hour, RefusalWait: time.Minute})
	f.Add(allow(0))
	for i := range 3 {
		f.Add(refusal(i))
	}
	killed := filepath.Join(t.TempDir(), "spool")
	if err := os.CopyFS(killed, os.DirFS(dir)); err != nil { // what a process that is killed now leaves
		t.Fatal(err)
	}
	if err := os.Chmod(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	f.stop()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%d files are left, %v", len(entries), err)
	}
	next := open(t, decisionlog.Options{Spool: killed, AllowPercent: 100})
	next.stop()
	if r, a := next.sink.count(t, "r"), next.sink.count(t, "a"); r != 3 || a != 0 {
		t.Errorf("%d refusals and %d allowed decisions outlived the process, want 3 and 0", r, a)
	}
	if entries, err := os.ReadDir(killed); err != nil || len(entries) != 0 {
		t.Errorf("%d files are left, %v", len(entries), err)
	}
}

// TestJournalThatCannotBeTaken: a journal for whose batch there is no place keeps nobody
// from deciding, and is sent by the next process that finds one.
func TestJournalThatCannotBeTaken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	inItsPlace := filepath.Join(dir, "0-0000000000000001-1.json.gz") // a folder, which no file replaces
	if err := os.MkdirAll(inItsPlace, 0o700); err != nil {
		t.Fatal(err)
	}
	line, err := json.Marshal(refusal(0))
	if err != nil {
		t.Fatal(err)
	}
	journal := filepath.Join(dir, "journal-0000000000000001.jsonl")
	if err := os.WriteFile(journal, append(line, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		f := open(t, decisionlog.Options{Spool: dir, RefusalWait: time.Minute})
		f.Add(refusal(1))
		f.stop()
		if got := f.sink.count(t, "r"); got != 1 {
			t.Errorf("%d refusals arrived, want the new one", got)
		}
		next := open(t, decisionlog.Options{Spool: dir})
		if err := os.Remove(inItsPlace); err != nil {
			t.Error(err)
		}
		pass(2 * time.Second)
		next.stop()
		if got := next.sink.count(t, "r"); got != 1 {
			t.Errorf("%d refusals arrived, want the one that was left", got)
		}
	})
	if _, err := os.Stat(journal); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal: %v", err)
	}
}

// TestStopsWhileFull: refusals that find no room when the log stops are in the journal
// for the next process.
func TestStopsWhileFull(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	const n = 20
	f := open(t, decisionlog.Options{Spool: dir, SpoolBytes: 1, Flush: time.Millisecond, RefusalWait: time.Minute})
	f.sink.set(errors.New("away"))
	for i := range n {
		f.Add(refusal(i))
		if i == 0 { // one batch always has room, and is all that has
			proctest.Eventually(t, time.Minute, func() error {
				if gathered(t, f.metrics, "writ_authz_log_spool_bytes") == 0 {
					return errors.New("nothing is kept yet")
				}
				return nil
			})
		}
	}
	f.stop()
	if lost := f.dropped(t, "refusal"); lost != 0 {
		t.Errorf("%d refusals that the journal has were dropped", lost)
	}
	next := open(t, decisionlog.Options{Spool: dir})
	proctest.Eventually(t, time.Minute, func() error {
		if left := gathered(t, next.metrics, "writ_authz_log_spool_bytes"); left > 0 {
			return fmt.Errorf("%.0f bytes are left", left)
		}
		return nil
	})
	next.stop()
	next.sink.mu.Lock()
	defer next.sink.mu.Unlock()
	if got := len(next.sink.got); got != n { // one that shares a file of the journal comes twice
		t.Errorf("%d refusals of %d arrived", got, n)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%d files are left, %v", len(entries), err)
	}
}

// TestRefusalsAreNotHeldUp: without a disk that takes them, answers leave after the wait,
// and that is counted.
func TestRefusalsAreNotHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prometheus.NewRegistry()
		l, err := decisionlog.Open(decisionlog.Options{
			Sink: &sink{got: map[string]int{}}, Spool: filepath.Join(t.TempDir(), "spool"), SpoolBytes: 1 << 20, RefusalWait: 5 * time.Millisecond,
			Flush: time.Second, AllowPercent: 100, Metrics: r, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now() // nobody runs it: its disk takes nothing
		l.Add(refusal(0))
		if took := time.Since(start); took != 5*time.Millisecond {
			t.Errorf("a refusal was held up for %s", took)
		}
		l.Add(allow(0))
		if took := time.Since(start); took != 5*time.Millisecond {
			t.Error("an allowed decision was held up")
		}
		if n := gathered(t, r, "writ_authz_refusals_unwritten_total"); n != 1 {
			t.Errorf("%v are counted", n)
		}
	})
}

// gathered is the value of a metric without labels.
func gathered(t testing.TB, from prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if m := family.GetMetric(); family.GetName() == name {
			return m[0].GetGauge().GetValue() + m[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}
