package rpc

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Follow runs a stream again and again until ctx ends, whose error it returns. run
// takes what one stream brings until that ends, and tells whether anything came; its
// context ends when it returns. The pause in between begins at least and doubles up
// to most while nothing comes, with jitter. Name is the stream's for the log, which
// gets each end at debug level.
func Follow(ctx context.Context, log *slog.Logger, name string, least, most time.Duration, run func(context.Context) (worked bool, err error)) error {
	wait := least
	for {
		worked, err := once(ctx, run)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if worked {
			wait = least
		}
		log.DebugContext(ctx, "stream ended", slog.String("stream", name), slog.Any("error", err), slog.Duration("retry_in", wait))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, most)
	}
}

func once(ctx context.Context, run func(context.Context) (bool, error)) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return run(ctx)
}
