package service

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
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

func protect(ctx context.Context, task func(context.Context) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return task(ctx)
}
