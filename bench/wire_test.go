package main

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/proctest"
)

// The lean client and a real gRPC server understand each other, at a rate and as fast as
// it goes; a bad answer ends the run.
func TestWire(t *testing.T) {
	addr := proctest.Address(t)
	proctest.Background(t, func(ctx context.Context) error { return errors.Join(serveFloor(ctx, addr), ctx.Err()) })
	proctest.Until(t, 10*time.Second, "the server listens", func() bool {
		c, err := net.Dial("tcp", addr)
		return err == nil && c.Close() == nil
	})
	load := wire{
		address: addr, connections: 2, inFlight: 8, method: rlsv3.RateLimitService_ShouldRateLimit_FullMethodName,
		request: func(n int) proto.Message { return rateLimitRequest(n) }, answer: okAnswer,
	}
	for _, rate := range []int{0, 500} {
		load.rate = rate
		got, err := load.run(t.Context(), 200*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.took) == 0 || got.took[0] <= 0 || !slices.IsSorted(got.took) || rate > 0 && len(got.took) > rate/3 { // what was due earlier may come late
			t.Errorf("rate %d: %d answers", rate, len(got.took))
		}
	}
	oops := errors.New("oops")
	load.answer = func([]byte) error { return oops }
	if _, err := load.run(t.Context(), 200*time.Millisecond); !errors.Is(err, oops) {
		t.Errorf("a bad answer gives %v", err)
	}
	load.method = "/no.such/Method"
	load.answer = okAnswer
	if _, err := load.run(t.Context(), 200*time.Millisecond); err == nil {
		t.Error("a method that is not there was called")
	}
}
