package tokens

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/revoked"
)

var now = time.Unix(1_800_000_000, 0).UTC()

func open(t *testing.T, path string) *List {
	t.Helper()
	l, err := Open(path, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func add(t *testing.T, l *List, rs ...Revocation) []Revocation {
	t.Helper()
	in, err := l.Add(rs)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func each(t *testing.T, l *List) (all []Revocation) {
	t.Helper()
	if err := l.Each(func(r Revocation) error { all = append(all, r); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestListOutlivesRestart: what was acknowledged is there after a restart, and what
// was taken back is not.
func TestListOutlivesRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.log")
	l := open(t, path)
	byID := Revocation{Issuer: "a", ID: "1", Until: now.Add(time.Hour), Time: now, Actor: "uid=0"}
	bySub := Revocation{Issuer: "a", Subject: "bob\n\"", IssuedBefore: now, Time: now}
	over := Revocation{Issuer: "a", ID: "over", Until: now.Add(-time.Hour), Time: now}
	add(t, l, byID, Revocation{Issuer: "a", ID: "2", Time: now}, bySub, over)
	if gone, err := l.Remove([]Revocation{{Issuer: "a", ID: "2"}, {Issuer: "a", ID: "2"}, {Issuer: "a", ID: "never was"}}); err != nil || len(gone) != 1 {
		t.Fatal(gone, err)
	}
	for range 2 {
		l = open(t, path)
		if got := each(t, l); !reflect.DeepEqual(got, []Revocation{byID, bySub}) {
			t.Errorf("%+v", got)
		}
		if r := l.Table.Check(revoked.Token{Issuer: "a", ID: "1"}); r != revoked.ByID {
			t.Errorf("a revoked token: %q", r)
		}
		if r := l.Table.Check(revoked.Token{Issuer: "a", ID: "2"}); r != revoked.NotRevoked {
			t.Errorf("a token whose revocation was taken back: %q", r)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
}

// TestAddNeverNarrows: a second revocation of the same takes nothing back.
func TestAddNeverNarrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.log")
	l := open(t, path)
	add(t, l, Revocation{Issuer: "a", Subject: "bob"}, Revocation{Issuer: "a", Subject: "eve", IssuedBefore: now})
	got := add(t, l, Revocation{Issuer: "a", Subject: "bob", IssuedBefore: now, Until: now}, Revocation{Issuer: "a", Subject: "eve", IssuedBefore: now.Add(-time.Hour)},
		Revocation{Issuer: "b", ID: "1"}, Revocation{Issuer: "b", ID: "1", Until: now})
	if !got[0].IssuedBefore.IsZero() || !got[0].Until.IsZero() || !got[1].IssuedBefore.Equal(now) || !got[3].Until.IsZero() {
		t.Errorf("%+v", got)
	}
	if again := each(t, open(t, path)); len(again) != 3 || !again[0].IssuedBefore.IsZero() {
		t.Errorf("%+v", again)
	}
}

func TestCheck(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "tokens.log"))
	for name, r := range map[string]Revocation{
		"no issuer":       {ID: "1"},
		"two things":      {Issuer: "a", ID: "1", Subject: "b"},
		"jti with a time": {Issuer: "a", ID: "1", IssuedBefore: now},
		"long":            {Issuer: "a", ID: strings.Repeat("x", maxValue+1)},
		"not UTF-8":       {Issuer: "a", ID: "\xff"},
		"before 1970":     {Issuer: "a", Subject: "b", IssuedBefore: time.Unix(-5, 0)},
		"after 2106":      {Issuer: "a", ID: "1", Until: time.Unix(1<<33, 0)},
	} {
		if _, err := l.Add([]Revocation{{Issuer: "a", ID: "good"}, r}); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if n := l.Table.Len(); n != 0 {
		t.Errorf("%d were revoked by requests that were refused", n)
	}
}

// TestDamagedFile: a last line that was cut off was not acknowledged; nothing else is
// passed over.
func TestDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.log")
	l := open(t, path)
	add(t, l, Revocation{Issuer: "a", ID: "1"})
	add(t, l, Revocation{Issuer: "a", ID: "2"})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(whole, '\n') + 1
	for cut := range len(whole) {
		write(t, path, whole[:cut])
		l := open(t, path)
		want := 0
		if cut >= first {
			want = 1
		}
		if l.Table.Len() != want {
			t.Fatalf("cut off at %d: %d entries, want %d", cut, l.Table.Len(), want)
		}
		add(t, l, Revocation{Issuer: "a", ID: "3"})
		if n := open(t, path).Table.Len(); n != want+1 {
			t.Fatalf("cut off at %d, then added to: %d entries, want %d", cut, n, want+1)
		}
	}
	for i := range whole {
		bad := bytes.Clone(whole)
		bad[i] ^= 1
		write(t, path, bad)
		var damaged *DamagedError
		if l, err := Open(path, now); i == len(whole)-1 {
			// The end of the last line: as if cut off.
			if err != nil || l.Table.Len() != 1 {
				t.Error(err)
			}
		} else if !errors.As(err, &damaged) || !strings.Contains(err.Error(), "backup") {
			t.Fatalf("bit of byte %d: %v", i, err)
		}
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCompaction: a file of which most says nothing any more is written anew.
func TestCompaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.log")
	l := open(t, path)
	keep := Revocation{Issuer: "a", ID: "keep"}
	add(t, l, keep)
	gone := make([]Revocation, 1100)
	for i := range gone {
		gone[i] = Revocation{Issuer: "a", ID: strings.Repeat("x", i+1)}
	}
	add(t, l, gone...)
	if _, err := l.Remove(gone); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() >= 1000 {
		t.Errorf("%d bytes after all but one were taken back, %v", info.Size(), err)
	}
	if r := l.Table.Check(revoked.Token{Issuer: "a", ID: "keep"}); r != revoked.ByID {
		t.Errorf("what stays: %q", r)
	}
	add(t, l, Revocation{Issuer: "a", ID: "more"})
	if got := each(t, open(t, path)); len(got) != 2 || got[0] != keep {
		t.Errorf("%+v", got)
	}
}

func FuzzParseLine(f *testing.F) {
	for _, l := range []line{{Revocation: Revocation{Issuer: "a", ID: "1"}}, {Revocation: Revocation{Issuer: "a", Subject: "b", IssuedBefore: now, Until: now, Time: now}, Undone: true}} {
		b, err := l.appendTo(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLine(b)
		if err != nil {
			return
		}
		again, err := l.appendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseLine(again[:len(again)-1]); err != nil || !reflect.DeepEqual(back, l) {
			t.Errorf("%+v became %+v: %v", l, back, err)
		}
	})
}
