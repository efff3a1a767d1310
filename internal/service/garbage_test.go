package service

import (
	"context"
	"errors"
	"runtime/debug"
	"testing"
	"time"
)

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		live, scan uint64
		want       int
	}{
		{0, 0, 1600},
		{4 << 20, 4 << 20, 1600},
		{8 << 20, 6 << 20, 800},
		{16 << 20, 8 << 20, 400},
		{64 << 20, 40 << 20, 100},
		{8 << 30, 5 << 30, 100},
		{640 << 20, 10 << 20, 10},
		{8 << 30, 1 << 30, 25},
		{8 << 30, 1 << 20, 1},
	} {
		if got := gcPercent(64<<20, heapSize{c.live, c.scan}); got != c.want {
			t.Errorf("%d live bytes, %d with pointers: %d, want %d", c.live, c.scan, got, c.want)
		}
	}
}

// What differs by little is not set again.
func TestOtherGCPercent(t *testing.T) {
	for _, c := range []struct {
		a, b int
		want bool
	}{{1, 1, false}, {1, 2, true}, {100, 112, false}, {112, 100, false}, {100, 115, true}, {115, 100, true}, {1600, 0, true}} {
		if got := isOther(c.a, c.b); got != c.want {
			t.Errorf("%d and %d: %v", c.a, c.b, got)
		}
	}
}

// What somebody else has set stays until he sets it back.
func TestPaceWaits(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	p := pacer{room: 64 << 30, set: 50}
	debug.SetGCPercent(77)
	p.tick(time.Time{})
	if got := debug.SetGCPercent(50); got != 77 || p.set != 50 {
		t.Errorf("somebody's 77 is %d, %d was set", got, p.set)
	}
	p.tick(time.Time{})
	if got := debug.SetGCPercent(50); got != p.set || got < 1000 {
		t.Errorf("room for 64 GiB makes it %d, and %d was set", got, p.set)
	}
}

// What PaceGarbage sets it takes back, and an operator's own setting it leaves alone.
func TestPaceGarbage(t *testing.T) {
	before := debug.SetGCPercent(123)
	defer debug.SetGCPercent(before)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, env := range []string{"", "100"} {
		t.Setenv("GOGC", env)
		if err := PaceGarbage(64 << 20)(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if got := debug.SetGCPercent(123); got != 123 {
			t.Errorf("GOGC %q: %d is left, want 123", env, got)
		}
	}
}
