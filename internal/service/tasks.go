package service

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// RunTasks runs the tasks together. When one returns, with or without an error,
// or when ctx ends, the others are told to stop by their context; RunTasks
// returns when all have, with the first error that is not that stop itself. A
// panic in a task is an error with its stack.
func RunTasks(ctx context.Context, tasks ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(tasks))
	var wg sync.WaitGroup
	for _, task := range tasks {
		wg.Go(func() {
			defer cancel()
			errs <- protect(ctx, task)
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return nil
}

// Every calls do with the time after each pause until ctx ends, never two at once: what
// takes longer than a pause leaves calls out. It returns the error of ctx.
func Every(ctx context.Context, pause time.Duration, do func(now time.Time)) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			do(now)
		}
	}
}

func protect(ctx context.Context, task func(context.Context) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return task(ctx)
}
