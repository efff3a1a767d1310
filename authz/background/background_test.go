package background

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
)

// What runs has its error, or its panic; one works at a time, with one thread more, which
// is taken back later.
func TestRun(t *testing.T) {
	narrow() // of tests before
	before := runtime.GOMAXPROCS(0)
	oops := errors.New("oops")
	if err := Run(t.Context(), func() error { return oops }); !errors.Is(err, oops) {
		t.Errorf("error %v", err)
	}
	err := Run(t.Context(), func() error { panic("at the disco") })
	if !errors.Is(err, errPanic) || !strings.Contains(err.Error(), "at the disco") {
		t.Errorf("a panic gives %v", err)
	}
	busy := 0
	results := make(chan error)
	for range 8 {
		go func() {
			results <- Run(t.Context(), func() error {
				busy++ // -race sees two at once
				defer func() { busy-- }()
				if busy != 1 {
					return errors.New("two at once")
				}
				if got := runtime.GOMAXPROCS(0); before == runtime.NumCPU() && got != before+1 {
					return errors.New("no thread more")
				}
				return nil
			})
		}()
	}
	for range 8 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	narrow()
	if got := runtime.GOMAXPROCS(0); got != before {
		t.Errorf("%d threads afterwards, %d before", got, before)
	}
}

// narrow takes the thread more back.
func narrow() {
	width.mu.Lock()
	turn := width.turn
	width.mu.Unlock()
	width.end(turn)
}

// Work whose context ends before its turn is not begun.
func TestEnded(t *testing.T) {
	begun, end := make(chan struct{}), make(chan struct{})
	first := make(chan error)
	go func() {
		first <- Run(t.Context(), func() error {
			close(begun)
			<-end
			return nil
		})
	}()
	<-begun
	over := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	second := make(chan error)
	f := func() error {
		t.Error("it was begun")
		return nil
	}
	go func() { second <- Run(ctx, f) }()
	cancel(over)
	if err := <-second; !errors.Is(err, over) {
		t.Errorf("error %v", err)
	}
	close(end)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := Run(ctx, f); !errors.Is(err, over) {
		t.Errorf("error %v", err)
	}
}
