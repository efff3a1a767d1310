package recording

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// record runs a recorder on requests, one a second.
func record(t *testing.T, dir string, maxBytes int64, list ...*Seen) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r, err := Open(Options{Folder: dir, MaxBytes: maxBytes, PerSecond: 10, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		for _, s := range list {
			r.Offer(s)
			synctest.Wait()
			pass(time.Second)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func seen(path string, allowed bool) *Seen {
	return &Seen{Time: time.Now(), From: "spiffe://cluster.local/ns/default/sa/web", Method: "GET", Path: path, Allowed: allowed, Headers: map[string]string{"x-user": "alice"}}
}

// counts reads a recording: how often each path was seen.
func counts(t *testing.T, dir string) (map[string]int, int) {
	t.Helper()
	got := map[string]int{}
	skipped, err := Read(dir, func(s *Seen) error {
		got[s.Path] += s.Count
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, skipped
}

// TestRecord: equal requests are counted, others have lines, also after a restart and
// behind a line that a death left torn.
func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "recording")
	record(t, dir, 1<<20, seen("/a", true), seen("/b", false), seen("/a", true), seen("/a", true))
	f, err := os.OpenFile(filepath.Join(dir, newer), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"time":"2026-01-01T00:00:00Z","count":3,"pa`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	record(t, dir, 1<<20, seen("/a", true))
	got, skipped := counts(t, dir)
	if diff := cmp.Diff(map[string]int{"/a": 4, "/b": 1}, got); diff != "" || skipped != 1 {
		t.Errorf("%d skipped; %s", skipped, diff)
	}
	text, err := os.ReadFile(filepath.Join(dir, newer))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), `"/a"`); n != 3 {
		t.Errorf("/a has %d lines, want one, one with the count, and one of the second process", n)
	}
	if info, err := os.Stat(filepath.Join(dir, newer)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestBounded: a recording has its size, and what was seen last is in it.
func TestBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "recording")
	var list []*Seen
	for i := range 500 {
		list = append(list, seen("/"+strconv.Itoa(i), true), seen("/always", true))
	}
	const bound = 20 << 10
	record(t, dir, bound, list...)
	size := int64(0)
	for _, name := range []string{newer, older} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > bound+1000 {
		t.Errorf("%d bytes, want %d at most", size, bound)
	}
	got, _ := counts(t, dir)
	if got["/0"] != 0 || got["/499"] != 1 || got["/always"] == 0 {
		t.Errorf("/0 %d, /499 %d, /always %d times", got["/0"], got["/499"], got["/always"])
	}
}

// TestWants: of what was allowed a few each second are recorded, of the rest many.
func TestWants(t *testing.T) {
	r := &Recorder{o: Options{PerSecond: 10}}
	now := time.Now()
	for _, refused := range []bool{true, false} {
		n := 0
		for range 2000 {
			if r.Wants(refused, now) {
				n++
			}
		}
		if want := map[bool]int{true: refusalsPerSecond, false: 10}[refused]; n != want {
			t.Errorf("refused %t: %d, want %d", refused, n, want)
		}
	}
	if !r.Wants(false, now.Add(time.Second)) || (*Recorder)(nil).Wants(true, now) {
		t.Error("the next second, or no recorder")
	}
}

// FuzzScan: whatever is in a file, what is read has a count, and nothing but lines
// are left out.
func FuzzScan(f *testing.F) {
	for _, s := range []string{"", "\n\n", `{"count":1,"path":"/a"}` + "\n", `{"count":1}`, "{\n{}\nnull\n", `{"count":-1}` + "\n" + `{"count":1,"claims":{"a":[1]}}`, strings.Repeat("x", 1<<18) + "\n" + `{"count":2}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		lines := 0
		skipped, err := scan(strings.NewReader(string(data)), func(s *Seen) error {
			if s.Count < 1 {
				t.Error("a request without a count")
			}
			lines++
			return nil
		})
		if all := strings.Count(string(data), "\n") + 1; err != nil || skipped+lines > all {
			t.Errorf("%d read and %d left out of %d lines: %v", lines, skipped, all, err)
		}
	})
}

// pass lets made time go by.
func pass(d time.Duration) { <-time.NewTimer(d).C }
