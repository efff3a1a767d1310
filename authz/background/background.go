package background

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
)

// turn has a token while somebody works: how many threads Go runs is one number in the process.
var turn = make(chan struct{}, 1)

// Run runs f and gives its error, or what it panicked with. It waits for its turn until
// ctx ends, and does not begin then; f that has begun has to look at ctx itself.
func Run(ctx context.Context, f func() error) error {
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-turn }()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	defer raise()()
	defer width.widen()()
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, whose priority cannot be raised again, ends with
		// the goroutine.
		runtime.LockOSThread()
		end := lower().watch()
		err := Try(f)
		end()
		done <- err
	}()
	return <-done
}

// errPanic is in the error of work that panicked.
var errPanic = errors.New("panic")

// Try runs f at once, where it is called; what it panics with is its error.
func Try(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, p, debug.Stack())
		}
	}()
	return f()
}
