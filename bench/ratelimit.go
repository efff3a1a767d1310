package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
)

// ratelimit measures ShouldRateLimit with one descriptor and 1,000 keys, none of
// them over its limit, with the counters in process and in a real Redis.
func ratelimit(ctx context.Context, o options) ([]row, error) {
	folder := filepath.Join(o.dir, "descriptors")
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	text := "domain: bench\ndescriptors:\n- key: user\n  rate_limit: {unit: hour, requests_per_unit: 4000000000}\n"
	if err := os.WriteFile(filepath.Join(folder, "bench.yaml"), []byte(text), 0o600); err != nil {
		return nil, err
	}
	floor, floorAddr, err := floorProcess(ctx)
	if err != nil {
		return nil, err
	}
	defer floor.stop()
	local, localAddr, err := launchRateLimit(ctx, o, folder)
	if err != nil {
		return nil, err
	}
	defer local.stop()
	sides := []side{{load: rateLimitLoad(floorAddr), server: floor}, {load: rateLimitLoad(localAddr), server: local}}
	monitoring := map[string]string{"exact": "", "leased": ""}
	redis, redisAddr, redisErr := launchRedis(ctx, o)
	if redisErr == nil {
		defer redis.stop()
		// Patient, so that a busy machine does not make it decide without Redis.
		conf := filepath.Join(o.dir, "ratelimit.yaml")
		if err := os.WriteFile(conf, []byte("redis: {timeout: 1s}\n"), 0o600); err != nil {
			return nil, err
		}
		for _, mode := range []string{"exact", "leased"} {
			if monitoring[mode], err = freeAddress(); err != nil {
				return nil, err
			}
			shared, sharedAddr, err := launchRateLimit(ctx, o, folder, "-config", conf, "-redis", redisAddr, "-mode", mode, "-monitoring", monitoring[mode])
			if err != nil {
				return nil, err
			}
			defer shared.stop()
			sides = append(sides, side{load: rateLimitLoad(sharedAddr), server: shared, also: redis})
		}
	}
	got, err := compare(ctx, o, sides...)
	if err != nil {
		return nil, err
	}
	rows := []row{{name: "ratelimit, counters in process", ours: got[1].perOp, floor: got[0].perOp, rate: got[1].rate}}
	if len(got) > 2 {
		local, err := share(ctx, monitoring["exact"], "writ_ratelimit_local_decisions_total")
		if err != nil {
			return nil, err
		}
		asked, err := share(ctx, monitoring["leased"], "writ_ratelimit_lease_requests_total")
		if err != nil {
			return nil, err
		}
		rows = append(rows, row{
			name: "ratelimit, exact, counters in Redis", ours: got[2].perOp, floor: got[0].perOp, rate: got[2].rate,
			note: fmt.Sprintf("and %s in Redis, %.1f %% decided without it", micro(got[2].also), 100*local),
		}, row{
			name: "ratelimit, leased, counters in Redis", ours: got[3].perOp, floor: got[0].perOp, rate: got[3].rate,
			note: fmt.Sprintf("and %s in Redis, asked for %.4f of the decisions; goal 1.3 and 0.1", micro(got[3].also), asked),
		})
	}
	return rows, redisErr
}

// share is what a counter has for each decision. Decisions made without Redis because
// it was too slow on this machine would make the figure of exact ones look too good.
func share(ctx context.Context, monitoring, counter string) (float64, error) {
	part, err := metric(ctx, monitoring, counter)
	if err != nil {
		return 0, err
	}
	all, err := metric(ctx, monitoring, "writ_ratelimit_decisions_total")
	return part / max(all, 1), err
}

func launchRateLimit(ctx context.Context, o options, folder string, args ...string) (*process, string, error) {
	addr, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	p, err := launch(ctx, addr, filepath.Join(o.bin, "writ-ratelimit"), append([]string{"-descriptors", folder, "-listen", addr}, args...)...)
	return p, addr, err
}

func launchRedis(ctx context.Context, o options) (*process, string, error) {
	addr, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	p, err := launchRedisAt(ctx, o, addr)
	return p, addr, err
}

// launchRedisAt starts an empty one at an address on this machine.
func launchRedisAt(ctx context.Context, o options, addr string) (*process, error) {
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("the row with Redis is left out: redis-server is missing (Debian package redis-server)")
	}
	return launch(ctx, addr, bin, "--bind", "127.0.0.1", "--port", addr[len("127.0.0.1:"):], "--save", "", "--appendonly", "no", "--dir", o.dir)
}

func rateLimitLoad(address string) load {
	return load{address: address, connections: 4, inFlight: 64, call: func(ctx context.Context, c *grpc.ClientConn, worker, n int) error {
		resp, err := rlsv3.NewRateLimitServiceClient(c).ShouldRateLimit(ctx, &rlsv3.RateLimitRequest{Domain: "bench", Descriptors: []*commonv3.RateLimitDescriptor{
			{Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "user", Value: fmt.Sprintf("u%d", (worker*7919+n)%1000)}}},
		}})
		if err == nil && resp.GetOverallCode() != rlsv3.RateLimitResponse_OK {
			return fmt.Errorf("answered %v", resp.GetOverallCode())
		}
		return err
	}}
}
