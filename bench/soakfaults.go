package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"time"
)

// redisUnderTest is the Redis of a soak and what befalls it.
type redisUnderTest struct {
	start   func(context.Context) (*process, error)
	process *process
	address string
	way     *redisWay
	// forgets is called as soon as Redis has forgotten everything.
	forgets func()
}

// fault is one of issue 7's item 9. It begins, lasts, and is taken back.
type fault struct {
	name        string
	least, most time.Duration
	goes        func(context.Context, *redisUnderTest) error
	returns     func(context.Context, *redisUnderTest) error
}

func soakFaults() []fault {
	nothing := func(context.Context, *redisUnderTest) error { return nil }
	say := func(command ...string) func(context.Context, *redisUnderTest) error {
		return func(ctx context.Context, r *redisUnderTest) error { return tellRedis(ctx, r.address, command...) }
	}
	delay := func(d time.Duration) func(context.Context, *redisUnderTest) error {
		return func(_ context.Context, r *redisUnderTest) error { r.way.delay.Store(int64(d)); return nil }
	}
	clock := func(d time.Duration) func(context.Context, *redisUnderTest) error {
		return func(_ context.Context, r *redisUnderTest) error { r.way.offset.Store(int64(d)); return nil }
	}
	return []fault{
		{"stopped, back empty", time.Second, 5 * time.Second, killRedis, startRedis},
		{"restarted empty", 0, 0, killRedis, startRedis},
		{"frozen", 100 * time.Millisecond, 4 * time.Second, signalRedis(syscall.SIGSTOP), signalRedis(syscall.SIGCONT)},
		{"slow by 100 ms", time.Second, 4 * time.Second, delay(100 * time.Millisecond), delay(0)},
		{"slow by 2 ms", time.Second, 4 * time.Second, delay(2 * time.Millisecond), delay(0)},
		{"full", time.Second, 4 * time.Second, say("CONFIG", "SET", "maxmemory", "1"), say("CONFIG", "SET", "maxmemory", "0")},
		{"read-only", time.Second, 4 * time.Second, say("REPLICAOF", "127.0.0.1", "1"), say("REPLICAOF", "NO", "ONE")},
		{"flushed", 0, 0, func(ctx context.Context, r *redisUnderTest) error {
			err := tellRedis(ctx, r.address, "FLUSHALL")
			r.forgets()
			return err
		}, nothing},
		{"clock a minute ahead", time.Second, 4 * time.Second, clock(time.Minute), clock(0)},
		{"clock a minute behind", time.Second, 4 * time.Second, clock(-time.Minute), clock(0)},
		{"connections cut", 0, 0, func(_ context.Context, r *redisUnderTest) error { r.way.cut(); return nil }, nothing},
	}
}

func killRedis(_ context.Context, r *redisUnderTest) error {
	_ = r.process.cmd.Process.Kill()
	<-r.process.done
	r.process = nil
	r.forgets()
	return nil
}

func startRedis(ctx context.Context, r *redisUnderTest) (err error) {
	r.process, err = r.start(ctx)
	return err
}

func signalRedis(s syscall.Signal) func(context.Context, *redisUnderTest) error {
	return func(_ context.Context, r *redisUnderTest) error { return r.process.cmd.Process.Signal(s) }
}

func (r *redisUnderTest) stop() {
	if r.process != nil {
		_ = r.process.cmd.Process.Signal(syscall.SIGCONT)
		r.process.stop()
	}
}

// tellRedis says one command that is answered by OK.
func tellRedis(ctx context.Context, address string, command ...string) error {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	out := bufio.NewWriter(c)
	args := make([][]byte, len(command))
	for i := range command {
		args[i] = []byte(command[i])
	}
	writeCommand(out, args)
	if err := errors.Join(c.SetDeadline(time.Now().Add(5*time.Second)), out.Flush()); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "+OK") {
		err = fmt.Errorf("redis: %v: %s", command, strings.TrimSpace(line))
	}
	return err
}

// deck deals all faults in random order, again and again.
type deck struct {
	rng  *rand.Rand
	rest []fault
}

func (d *deck) next() (fault, time.Duration) {
	if len(d.rest) == 0 {
		d.rest = soakFaults()
		d.rng.Shuffle(len(d.rest), func(i, j int) { d.rest[i], d.rest[j] = d.rest[j], d.rest[i] })
	}
	f := d.rest[0]
	d.rest = d.rest[1:]
	return f, f.least + time.Duration(d.rng.Int64N(int64(f.most-f.least)+1))
}
