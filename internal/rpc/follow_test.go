package rpc_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-mesh/writ/internal/rpc"
)

// TestFollow: pauses double while nothing comes, begin anew when something did, and
// each stream's context ends with it.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		const least, most = 100 * time.Millisecond, 400 * time.Millisecond
		wants := []time.Duration{least, 2 * least, most, most, least, 2 * least}
		var before context.Context
		var ended time.Time
		n := 0
		err := rpc.Follow(ctx, slog.New(slog.DiscardHandler), "test", least, most, func(ctx context.Context) (bool, error) {
			if before != nil && before.Err() == nil {
				t.Error("the context of the stream before is alive")
			}
			before = ctx
			if n > 0 {
				want := wants[n-1]
				if paused := time.Since(ended); paused < want/2 || paused >= want*3/2 {
					t.Errorf("pause %d took %s, want %s with half of it more or less", n, paused, want)
				}
			}
			if n++; n > len(wants) {
				cancel()
			}
			ended = time.Now()
			return n == 5, errors.New("ended")
		})
		if !errors.Is(err, context.Canceled) || n != len(wants)+1 {
			t.Errorf("%d streams, %v", n, err)
		}
	})
}
