package authz

import (
	"context"
	"runtime/debug"
	"testing"
)

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 800, 4 << 20: 800, 8 << 20: 800, 16 << 20: 400, 64 << 20: 100, 8 << 30: 100} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d live bytes: %d, want %d", live, got, want)
		}
	}
}

// What paceGC sets it takes back, and an operator's own setting it leaves alone.
func TestPaceGC(t *testing.T) {
	before := debug.SetGCPercent(123)
	defer debug.SetGCPercent(before)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, env := range []string{"", "100"} {
		t.Setenv("GOGC", env)
		if err := paceGC(ctx); err != nil {
			t.Fatal(err)
		}
		if got := debug.SetGCPercent(123); got != 123 {
			t.Errorf("GOGC %q: %d is left, want 123", env, got)
		}
	}
}
