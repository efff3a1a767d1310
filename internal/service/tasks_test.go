package service

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var at []time.Duration
		err := Every(ctx, time.Second, func(now time.Time) {
			at = append(at, time.Since(begin))
			if !now.Equal(begin.Add(time.Duration(len(at))*time.Second)) && len(at) < 3 {
				t.Errorf("call %d says it is %s", len(at), now)
			}
			switch len(at) {
			case 2: // longer than two pauses
				time.Sleep(2500 * time.Millisecond) //nolint:forbidigo // of a synctest bubble
			case 5:
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		// What came due at 3 s is called at once at 4.5 s, what came due at 4 s is left out.
		want := []time.Duration{1 * time.Second, 2 * time.Second, 4500 * time.Millisecond, 5 * time.Second, 6 * time.Second}
		if !slices.Equal(at, want) {
			t.Errorf("called at %v, want %v", at, want)
		}
	})
}
