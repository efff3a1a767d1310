package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// call makes one operation on a connection; n counts the operations of one worker.
type call func(ctx context.Context, conn *grpc.ClientConn, worker, n int) error

// load is a closed loop: a number of workers on a number of connections.
type load struct {
	address     string
	connections int
	inFlight    int
	call        call
	creds       credentials.TransportCredentials // nil for none
}

// sample is what one measurement found.
type sample struct {
	perOp time.Duration // CPU time of the server per operation
	also  time.Duration // of a second process, for example Redis
	rate  float64
}

// measure warms up, then runs for o.each and looks at the server's CPU time.
func (l load) measure(ctx context.Context, o options, server, also *process) (sample, error) {
	conns := make([]*grpc.ClientConn, l.connections)
	creds := l.creds
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	for i := range conns {
		c, err := grpc.NewClient(l.address, grpc.WithTransportCredentials(creds))
		if err != nil {
			return sample{}, err
		}
		defer func() { _ = c.Close() }()
		conns[i] = c
	}
	if _, err := l.run(ctx, conns, o.each/3, 0); err != nil {
		return sample{}, err
	}
	before, alsoBefore, err := cpus(server, also)
	if err != nil {
		return sample{}, err
	}
	begin := time.Now()
	ops, err := l.run(ctx, conns, o.each, 1)
	if err != nil {
		return sample{}, err
	}
	took := time.Since(begin)
	after, alsoAfter, err := cpus(server, also)
	if err != nil {
		return sample{}, err
	}
	return sample{
		perOp: (after - before) / time.Duration(ops), also: (alsoAfter - alsoBefore) / time.Duration(ops),
		rate: float64(ops) / took.Seconds(),
	}, nil
}

func cpus(server, also *process) (a, b time.Duration, err error) {
	if a, err = server.cpu(); err == nil && also != nil {
		b, err = also.cpu()
	}
	return a, b, err
}

// run lets all workers work for a while and counts the operations. The phase
// keeps operations of a measurement apart from those of its warm-up.
func (l load) run(ctx context.Context, conns []*grpc.ClientConn, length time.Duration, phase int) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	const phaseSize = 1 << 40
	var ops atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(length)
	for w := range l.inFlight {
		wg.Go(func() {
			for n := phase * phaseSize; ctx.Err() == nil && time.Now().Before(end); n++ {
				if err := l.call(ctx, conns[w%len(conns)], w, n); err != nil {
					cancel(err)
					return
				}
				ops.Add(1)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	if ops.Load() == 0 {
		return 0, fmt.Errorf("no operation within %s", length)
	}
	return ops.Load(), nil
}

// side is one of the two that are compared.
type side struct {
	load   load
	server *process
	also   *process
}

// compare measures the sides in turn, so that what disturbs disturbs all alike,
// and gives the medians.
func compare(ctx context.Context, o options, sides ...side) ([]sample, error) {
	perOp, also, rate := make([][]time.Duration, len(sides)), make([][]time.Duration, len(sides)), make([][]float64, len(sides))
	for range o.rounds {
		for i, s := range sides {
			got, err := s.load.measure(ctx, o, s.server, s.also)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.server.name, err)
			}
			perOp[i], also[i], rate[i] = append(perOp[i], got.perOp), append(also[i], got.also), append(rate[i], got.rate)
		}
	}
	out := make([]sample, len(sides))
	for i := range sides {
		out[i] = sample{perOp: median(perOp[i]), also: median(also[i]), rate: median(rate[i])}
	}
	return out, nil
}
