package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
)

// ratelimit measures ShouldRateLimit with one descriptor and 1,000 keys, none of
// them over its limit, with the counters in process and in a real Redis.
func ratelimit(ctx context.Context, o options) ([]row, error) {
	folder := filepath.Join(o.dir, "descriptors")
	if err := writeDomain(folder); err != nil {
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
	var incumbent *process
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
		if o.incumbent != "" {
			var addr string
			if incumbent, addr, err = launchIncumbent(ctx, o, redisAddr); err != nil {
				return nil, err
			}
			defer incumbent.stop()
			sides = append(sides, side{load: rateLimitLoad(addr), server: incumbent, also: redis})
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
	if incumbent != nil {
		exact, theirs := got[2].perOp+got[2].also, got[4].perOp+got[4].also
		rows = append(rows, row{
			name: "ratelimit, exact, and envoyproxy/ratelimit, both with Redis", ours: exact, floor: theirs, rate: got[4].rate,
			note: fmt.Sprintf("it takes %s and %s in Redis; goal 0.6", micro(got[4].perOp), micro(got[4].also)),
		})
	}
	return rows, redisErr
}

// writeDomain makes a folder with the limit that all rows ask for.
func writeDomain(folder string) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	const text = "domain: bench\ndescriptors:\n- key: user\n  rate_limit: {unit: hour, requests_per_unit: 4000000000}\n"
	return os.WriteFile(filepath.Join(folder, "bench.yaml"), []byte(text), 0o600)
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

// launchIncumbent starts envoyproxy/ratelimit.
func launchIncumbent(ctx context.Context, o options, redis string) (*process, string, error) {
	if err := writeDomain(filepath.Join(o.dir, "incumbent", "ratelimit", "config")); err != nil {
		return nil, "", err
	}
	var addr [3]string // gRPC, HTTP, debugging
	for i := range addr {
		var err error
		if addr[i], err = freeAddress(); err != nil {
			return nil, "", err
		}
	}
	port := func(a string) string { return strings.TrimPrefix(a, "127.0.0.1:") }
	p, err := launch(ctx, addr[0], "env",
		"GRPC_HOST=127.0.0.1", "GRPC_PORT="+port(addr[0]), "HOST=127.0.0.1", "PORT="+port(addr[1]), "DEBUG_HOST=127.0.0.1", "DEBUG_PORT="+port(addr[2]),
		"REDIS_SOCKET_TYPE=tcp", "REDIS_URL="+redis, "USE_STATSD=false", "LOG_LEVEL=warn",
		"RUNTIME_ROOT="+filepath.Join(o.dir, "incumbent"), "RUNTIME_SUBDIRECTORY=ratelimit", "RUNTIME_WATCH_ROOT=false", o.incumbent)
	return p, addr[0], err
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
		resp, err := rlsv3.NewRateLimitServiceClient(c).ShouldRateLimit(ctx, rateLimitRequest((worker*7919+n)%1000))
		if err == nil && resp.GetOverallCode() != rlsv3.RateLimitResponse_OK {
			return fmt.Errorf("answered %v", resp.GetOverallCode())
		}
		return err
	}}
}

func rateLimitRequest(user int) *rlsv3.RateLimitRequest {
	return &rlsv3.RateLimitRequest{Domain: "bench", Descriptors: []*commonv3.RateLimitDescriptor{
		{Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "user", Value: fmt.Sprintf("u%d", user)}}},
	}}
}
