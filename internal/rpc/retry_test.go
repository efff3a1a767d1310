package rpc_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/rpc"
)

func TestRetryAfter(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want time.Duration
	}{
		"none":        {nil, 0},
		"no status":   {errors.New("x"), 0},
		"no detail":   {status.Error(codes.ResourceExhausted, "x"), 0},
		"a second":    {rpc.Exhausted(time.Second, "no more than %d", 5), time.Second},
		"wrapped":     {fmt.Errorf("join: %w", rpc.Exhausted(time.Second, "x")), time.Second},
		"joined":      {errors.Join(errors.New("no token"), rpc.Exhausted(time.Second, "x")), time.Second},
		"in the past": {rpc.Exhausted(-time.Second, "x"), 0},
		"for ever":    {rpc.Exhausted(1000*time.Hour, "x"), 30 * time.Second},
	} {
		if got := rpc.RetryAfter(tc.err); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	if err := rpc.Exhausted(time.Second, "no more than %d", 5); status.Code(err) != codes.ResourceExhausted || status.Convert(err).Message() != "no more than 5" {
		t.Error(err)
	}
}
