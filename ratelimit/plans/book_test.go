package plans

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestNoTables: a service goes on that has no tables.
func TestNoTables(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		err := New(Options{MaxCallers: 1, Now: time.Now, Log: slog.New(slog.DiscardHandler)}).Run(ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it ended before its time: %v", err)
		}
	})
}
