package rpc_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

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
		"a second":    {exhausted(t, time.Second), time.Second},
		"wrapped":     {fmt.Errorf("join: %w", exhausted(t, time.Second)), time.Second},
		"joined":      {errors.Join(errors.New("no token"), exhausted(t, time.Second)), time.Second},
		"in the past": {exhausted(t, -time.Second), 0},
		"for ever":    {exhausted(t, 1000*time.Hour), 30 * time.Second},
	} {
		if got := rpc.RetryAfter(tc.err); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// exhausted is an error that asks to wait.
func exhausted(t *testing.T, wait time.Duration) error {
	t.Helper()
	st, err := status.New(codes.ResourceExhausted, "x").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}
