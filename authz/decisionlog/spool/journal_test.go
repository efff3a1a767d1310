package spool_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/writ-mesh/writ/authz/decisionlog/spool"
)

// journals opens a spool and its journal, and gives what was left.
func journals(t *testing.T, dir string) (j *spool.Journal, left []string) {
	t.Helper()
	s, err := spool.Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	files, err := s.Left()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := s.Take(f, func(r io.Reader) error {
			text, err := io.ReadAll(r)
			if int64(len(text)) != f.Size {
				t.Errorf("%d bytes, not %d", len(text), f.Size)
			}
			left = append(left, strings.Fields(string(text))...)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return s.Journal(func(err error) { t.Error(err) }), left
}

// written appends lines and has them written into a file that ends with them.
func written(t *testing.T, j *spool.Journal, lines ...string) (all []*spool.Written) {
	t.Helper()
	for _, line := range lines {
		w, err := j.Append([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, w)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	j.Run(ctx) // no longer than there is something
	for _, w := range all {
		if err := w.Wait(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// onDisk are the lines of all journals in a folder.
func onDisk(t *testing.T, dir string) (lines []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "journal-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, strings.Fields(string(text))...)
	}
	return lines
}

// TestJournal: what is written is on disk until all of its file is released, and what
// was not is what the next process finds, once.
func TestJournal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	j, _ := journals(t, dir)
	first := written(t, j, "a", "b")
	written(t, j, "c")
	for _, step := range []struct {
		release []*spool.Written
		want    string
	}{
		{nil, "abc"},
		{first[:1], "abc"},
		{first[1:], "c"},
	} {
		j.Release(step.release)
		if got := strings.Join(onDisk(t, dir), ""); got != step.want {
			t.Errorf("on disk is %s, want %s", got, step.want)
		}
	}
	j, left := journals(t, dir)
	if !slices.Equal(left, []string{"c"}) {
		t.Errorf("%q is left", left)
	}
	if got := onDisk(t, dir); len(got) > 0 {
		t.Errorf("%q was taken and is still there", got)
	}
	j.Release(written(t, j, "d"))
	if got := onDisk(t, dir); len(got) > 0 {
		t.Errorf("%q was released and is still there", got)
	}
}

// TestJournalRuns: who waits gets what he waits for, while others write too.
func TestJournalRuns(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	j, _ := journals(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	var runs, writers sync.WaitGroup
	runs.Go(func() { j.Run(ctx) })
	const each = 50
	for i := range 4 {
		writers.Go(func() {
			for n := range each {
				w, err := j.Append(fmt.Appendf(nil, "%d-%d", i, n))
				if err == nil {
					err = w.Wait(time.Minute)
				}
				if err != nil {
					t.Error(err)
				}
				if n%7 == 0 {
					j.Turn()
				}
			}
		})
	}
	writers.Wait()
	got := onDisk(t, dir)
	slices.Sort(got)
	if got = slices.Compact(got); len(got) != 4*each {
		t.Errorf("%d lines are on disk of %d", len(got), 4*each)
	}
	cancel()
	runs.Wait()
}

// TestJournalKept: journals that nobody could take stay, and are in nobody's way.
func TestJournalKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	j, _ := journals(t, dir)
	written(t, j, "a")
	written(t, j, "b")
	s, err := spool.Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("full")
	left, err := s.Left()
	if err != nil || len(left) != 2 {
		t.Fatalf("%d are left, %v", len(left), err)
	}
	if err := s.Take(left[0], func(io.Reader) error { return full }); !errors.Is(err, full) {
		t.Errorf("the error is %v", err)
	}
	written(t, s.Journal(func(err error) { t.Error(err) }), "c")
	if got := onDisk(t, dir); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("on disk are %q", got)
	}
}

// TestJournalNotHeldUp: who appends does not wait while a file is removed.
func TestJournalNotHeldUp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s, err := spool.Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	removing := 0
	var j *spool.Journal
	j = s.Journal(func(error) { // while it is being removed
		removing++
		appended := make(chan error, 1)
		go func() {
			_, err := j.Append([]byte("b"))
			appended <- err
		}()
		select {
		case err := <-appended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("a line waits for a file that is removed")
		}
	})
	lines := written(t, j, "a")
	files, err := filepath.Glob(filepath.Join(dir, "journal-*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(files[0], "x"), 0o700); err != nil { // which cannot be removed
		t.Fatal(err)
	}
	j.Release(lines)
	if removing != 1 {
		t.Errorf("told %d times of a file that cannot be removed", removing)
	}
}

// TestJournalBounded: lines that wait for a disk that takes none are bounded, and who
// waits for them is not kept.
func TestJournalBounded(t *testing.T) {
	s, err := spool.Open(filepath.Join(t.TempDir(), "spool"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	j := s.Journal(func(err error) { t.Error(err) }) // nobody runs it
	line := make([]byte, 1<<20)
	for i := range 10 {
		w, err := j.Append(line)
		if err != nil {
			if i < 3 {
				t.Errorf("line %d: %v", i, err)
			}
			return
		}
		if w.Wait(0) == nil {
			t.Error("it is written by nobody")
		}
	}
	t.Error("all of 10 MiB is kept in memory")
}
