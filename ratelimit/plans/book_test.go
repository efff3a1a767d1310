package plans

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// TestNoTables: a service goes on that has no tables.
func TestNoTables(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		err := New(Options{MaxCallers: 1, Now: time.Now, Log: slog.New(slog.DiscardHandler)}).Run(ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it ended before its time: %v", err)
		}
	})
}

// TestNamesAreForgotten: what no policy names any more and no file has leaves nothing
// behind; what a policy names stays, its file gone or not, and is followed again.
func TestNamesAreForgotten(t *testing.T) {
	dir := t.TempDir()
	b, _ := newBook(t, dir)
	b.options.Tables = []string{"redis"}
	b.follow("redis")
	file := func(name string) string { return filepath.Join(dir, name+Suffix) }
	for _, name := range []string{"file", "gone", "gone-and-named"} {
		replace(t, file(name), "numbers n\ncaller alice 1\n")
	}
	for i := range 50 {
		b.Handle(fmt.Sprint("nowhere-", i))
	}
	b.folder.look()
	named := b.Handle("gone-and-named")
	b.Named(map[string]bool{"gone-and-named": true, "nowhere-7": true})
	for _, name := range []string{"gone", "gone-and-named"} {
		if err := os.Remove(file(name)); err != nil {
			t.Fatal(err)
		}
	}
	b.folder.look()
	var names []string
	for _, h := range b.all() {
		names = append(names, h.Name())
	}
	if got := fmt.Sprint(names); got != "[file gone-and-named nowhere-7 redis]" || len(b.folder.seen) != 2 {
		t.Errorf("there are %s, %d files", got, len(b.folder.seen))
	}
	if f := named.Find("alice", ""); f.Number.Requests != 1 {
		t.Errorf("a table that a policy names: %+v", f)
	}
	replace(t, file("gone-and-named"), "numbers n\ncaller alice 2\n")
	// A policy that is compiled, and not in force yet.
	soon := b.Handle("gone")
	b.folder.look()
	replace(t, file("gone"), "numbers n\ncaller alice 3\n")
	b.folder.look()
	if a, s := named.Find("alice", ""), soon.Find("alice", ""); a.Number.Requests != 2 || s.Number.Requests != 3 {
		t.Errorf("files that came back: %+v, %+v", a, s)
	}
}
