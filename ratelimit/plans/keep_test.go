package plans

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
)

// TestWhatIsKeptIsTheTable: a table that was written and read again says the same, with
// names of all kinds and whatever has changed since it was read.
func TestWhatIsKeptIsTheTable(t *testing.T) {
	for name, text := range map[string]string{
		"small":   small,
		"names":   "numbers n\nplan p 1\ncaller %23a%20%25b p\ncaller #c 4294967295:7\ncaller caller 0\ncaller %c3%a4 2\n",
		"refuse":  "numbers n\ndefault refuse\n",
		"default": "numbers a b\nplan p 1:1 2\ndefault p\n",
	} {
		table := parsed(t, strings.ReplaceAll(text, "caller #c", "caller %23c"))
		for range 2 {
			kept := string(table.text())
			again, err := parse(strings.NewReader(kept), name, 1000)
			if err != nil {
				t.Fatalf("%s: %v in\n%s", name, err, kept)
			}
			equal(t, again, table)
			// Then of one over which changes are laid.
			own := append(table.own, make([]Number, len(table.columns))...) //nolint:gocritic // as a follower does
			table = table.set(map[string]entry{
				"alice": nobody, "new": ownRow | entry(len(own)/len(table.columns)-1), //nolint:gosec // a few
			}, own)
		}
	}
}

// TestKeptAtMostOnceAMinute: the disk is written to when a table has changed, and not with
// each change.
func TestKeptAtMostOnceAMinute(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := New(Options{Tables: []string{"t"}, State: dir, MaxCallers: 10, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		h := b.Handle("t")
		done := make(chan struct{})
		go func() { defer close(done); _ = b.keep(ctx, h) }()
		file := filepath.Join(dir, keptFile("t"))
		var last fs.FileInfo
		written := 0
		for n := range 300 {
			if n < 150 {
				h.table.Store(parsed(t, "numbers n\ncaller alice 1\n"))
			}
			<-time.After(time.Second)
			synctest.Wait()
			if info, err := os.Stat(file); err == nil && (last == nil || !os.SameFile(last, info)) {
				last = info
				written++
			}
		}
		if written != 4 { // at 1, 61 and 121, and the last one
			t.Errorf("it was written %d times", written)
		}
		if last != nil && last.Mode().Perm() != 0o600 {
			t.Errorf("it has mode %v", last.Mode())
		}
		cancel()
		<-done
	})
}

// TestKeptLater: a table that could not be written is written when it can be, though it
// changed no more.
func TestKeptLater(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, keptFile("t"))
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := &Book{options: Options{State: dir, Log: slog.New(slog.DiscardHandler)}, keepEvery: defaultKeepEvery}
		h := &Handle{name: "t"}
		done := make(chan struct{})
		go func() { defer close(done); _ = b.keep(ctx, h) }()
		synctest.Wait()
		h.table.Store(parsed(t, "numbers n\ncaller alice 1\n"))
		<-time.After(2 * defaultKeepEvery)
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
		<-time.After(2 * defaultKeepEvery)
		synctest.Wait()
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), "caller alice 1\n") {
			t.Errorf("%s, %v", text, err)
		}
		cancel()
		<-done
	})
}

// TestKeptInPart: what a process left that died while it kept a table does not stay.
func TestKeptInPart(t *testing.T) {
	dir := t.TempDir()
	for _, file := range []string{"." + keptFile("t") + ".123456", "limit-changes.jsonl.1"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("numbers n\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	New(Options{Tables: []string{"t"}, State: dir, MaxCallers: 10, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || files[0].Name() != "limit-changes.jsonl.1" {
		t.Errorf("%v, %v", files, err)
	}
}

// TestStartWithoutRedis: what Redis had last holds when ratelimit is started again while
// Redis is away, its age included, and Redis is read when it is back. What is kept and
// wrong is not used.
func TestStartWithoutRedis(t *testing.T) {
	t.Parallel()
	server, state := redistest.Start(t), t.TempDir()
	key := redisstore.PlansKey("t")
	server.Command(t, "HSET", key, "alice", "gold", "bob", "5:2")
	server.Command(t, "SET", key+":head", "numbers n\nplan free 60\nplan gold 600\ndefault free\n")
	start := func(ctx context.Context) (*Handle, chan error) {
		from, err := redisstore.OpenPlans(redisstore.Options{Address: server.Address()})
		if err != nil {
			t.Fatal(err)
		}
		b := New(Options{Redis: from, Tables: []string{"t"}, State: state, MaxCallers: 10, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		b.lookEvery, b.readPause, b.keepEvery = 10*time.Millisecond, 50*time.Millisecond, 0
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		return b.Handle("t"), done
	}
	ctx, stop := context.WithCancel(t.Context())
	h, done := start(ctx)
	becomes(t, h, "alice", 600, byPlan)
	file := filepath.Join(state, keptFile("t"))
	proctest.Until(t, 20*time.Second, "the table to be kept", func() bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(text), "caller bob 5:2\n")
	})
	stop()
	<-done
	server.Kill()
	day := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(file, day, day); err != nil {
		t.Fatal(err)
	}

	ctx, stop = context.WithCancel(t.Context())
	h, done = start(ctx)
	for caller, want := range map[string]uint32{"alice": 600, "bob": 5, "carol": 60} {
		if f := h.Find(caller, ""); f.Number.Requests != want {
			t.Errorf("%s has %+v without Redis", caller, f)
		}
	}
	failsUntil(t, h)
	if age := time.Since(time.Unix(0, h.current.Load())); age < 23*time.Hour {
		t.Errorf("the table of yesterday is %v old", age)
	}
	server.Restart(t)
	server.Command(t, "HSET", key, "alice", "7")
	server.Command(t, "SET", key+":head", "numbers n\n")
	becomes(t, h, "alice", 7, byItself)
	becomes(t, h, "bob", 0, byNothing)
	stop()
	<-done

	server.Kill()
	if err := os.WriteFile(file, []byte("numbers n\ncaller alice -1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop = context.WithCancel(t.Context())
	h, done = start(ctx)
	if f := h.Find("alice", ""); f.by != byNothing {
		t.Errorf("of a file that is wrong: %+v", f)
	}
	stop()
	<-done
}
