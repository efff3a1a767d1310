package service

import (
	"context"
	"errors"
	"runtime/debug"
	"testing"
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
