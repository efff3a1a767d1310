package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// ratelimitCore measures by the clock: how many leased decisions a second ratelimit makes
// on one processor, and how long answers take at half of that. The load and Redis have
// the other processors.
func ratelimitCore(ctx context.Context, o options) ([]row, error) {
	if runtime.NumCPU() < 2 {
		return nil, errors.New("the row needs two processors")
	}
	if _, err := exec.LookPath("taskset"); err != nil {
		return nil, errors.New("the row is left out: taskset is missing (Debian package util-linux)")
	}
	folder := filepath.Join(o.dir, "descriptors")
	if err := writeDomain(folder); err != nil {
		return nil, err
	}
	free, err := keepOffFirstCPU()
	if err != nil {
		return nil, err
	}
	defer free()
	redis, redisAddr, err := launchRedis(ctx, o)
	if err != nil {
		return nil, err
	}
	defer redis.stop()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var address [2]string
	for i, program := range [][]string{
		{filepath.Join(o.bin, "writ-ratelimit"), "-descriptors", folder, "-redis", redisAddr, "-mode", "leased", "-listen"},
		{self, "-be", "grpc", "-listen"},
	} {
		if address[i], err = freeAddress(); err != nil {
			return nil, err
		}
		p, err := launch(ctx, address[i], "taskset", append(append([]string{"-c", "0"}, program...), address[i])...)
		if err != nil {
			return nil, err
		}
		defer p.stop()
	}
	return coreRows(ctx, o, address)
}

// coreRows measures ours and the floor, which listen there, in turn.
func coreRows(ctx context.Context, o options, address [2]string) ([]row, error) {
	run := func(address string, rate int) (wired, error) {
		l := wire{
			address: address, connections: 4, inFlight: 64, rate: rate, method: rlsv3.RateLimitService_ShouldRateLimit_FullMethodName,
			request: func(n int) proto.Message { return rateLimitRequest(n % 1000) },
			answer:  okAnswer,
		}
		return l.run(ctx, o.each)
	}
	var full, floorFull []float64
	for range o.rounds {
		for i, into := range []*[]float64{&full, &floorFull} {
			got, err := run(address[i], 0)
			if err != nil {
				return nil, err
			}
			*into = append(*into, got.perSecond())
		}
	}
	const half = 12_500 // of 25,000, the goal
	var p50, p99 [2][]time.Duration
	var late []time.Duration
	var spells [2][]spell
	for range o.rounds {
		for i := range address {
			got, err := run(address[i], half)
			if err != nil {
				return nil, err
			}
			p50[i], p99[i] = append(p50[i], percentile(got.took, 500)), append(p99[i], percentile(got.took, 990))
			late = append(late, percentile(got.late, 990))
			spells[i] = append(spells[i], got.spells...)
		}
	}
	calm, stolen := calmest(spells[0])
	calmFloor, stolenFloor := calmest(spells[1])
	each := func(rate float64) time.Duration { return time.Duration(float64(time.Second) / rate) }
	return []row{{
		name: "ratelimit, leased, on one processor, by the clock", ours: each(median(full)), floor: each(median(floorFull)), rate: median(full),
		note: "goal 25,000 a second, which is 40 us",
	}, {
		name: fmt.Sprintf("the same, %d decisions a second, p99", half), ours: median(p99[0]), floor: median(p99[1]), rate: float64(half),
		note: fmt.Sprintf("p50 %s and %s; the load came %s late, p99; in the third of the time in which the host kept the processors least (at most %d ms in each %d), p99 %s and %s; goal p99 1 ms",
			micro(median(p50[0])), micro(median(p50[1])), micro(median(late)), max(stolen, stolenFloor).Milliseconds(), spellLength.Milliseconds(), micro(percentile(calm, 990)), micro(percentile(calmFloor, 990))),
	}}, nil
}

// okAnswer wants a RateLimitResponse that begins with overall_code OK (field 1, value 1).
func okAnswer(message []byte) error {
	if !bytes.HasPrefix(message, []byte{0x08, byte(rlsv3.RateLimitResponse_OK)}) {
		return fmt.Errorf("not OK: %x", message)
	}
	return nil
}

// keepOffFirstCPU keeps this process, and what it starts, to the other processors until
// free is called.
func keepOffFirstCPU() (free func(), err error) {
	var before, rest unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, err
	}
	rest = before
	rest.Clear(0)
	return func() { _ = setAffinity(&before) }, setAffinity(&rest)
}

// setAffinity is for all threads there are. Those to come inherit it.
func setAffinity(set *unix.CPUSet) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		var tid int
		if _, err := fmt.Sscan(t.Name(), &tid); err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("keep to processors: %w", err)
		}
	}
	return nil
}
