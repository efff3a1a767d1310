package relay

import (
	"context"
	"errors"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/writ-mesh/writ/nodeagent/latest"
)

// errAway means that pilot cannot be reached now.
var errAway = errors.New("pilot cannot be reached")

// Pilot is the connection to pilot and whether it works.
type Pilot struct {
	// client is nil while there is no connection.
	client latest.Value[discoveryv3.AggregatedDiscoveryServiceClient]
}

// Run watches conn and keeps it connected until ctx ends. report is called with
// each change of its state.
func (p *Pilot) Run(ctx context.Context, conn *grpc.ClientConn, report func(ready bool)) error {
	defer p.client.Set(nil)
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
	ready := false
	for {
		state := conn.GetState()
		if state == connectivity.Idle {
			conn.Connect()
		}
		if now := state == connectivity.Ready; now != ready {
			ready = now
			if ready {
				p.client.Set(client)
			} else {
				p.client.Set(nil)
			}
			report(ready)
		}
		if !conn.WaitForStateChange(ctx, state) {
			return ctx.Err()
		}
	}
}

// Ready tells whether pilot is connected.
func (p *Pilot) Ready() bool {
	c, _ := p.client.Get()
	return c != nil
}

// get waits for at most limit until pilot is connected.
func (p *Pilot) get(ctx context.Context, limit time.Duration) (discoveryv3.AggregatedDiscoveryServiceClient, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		c, changed := p.client.Get()
		if c != nil {
			return c, nil
		}
		select {
		case <-changed:
		case <-timeout.C:
			return nil, errAway
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// back returns a channel that is closed when pilot is connected or ctx ends.
func (p *Pilot) back(ctx context.Context) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		defer close(out)
		for {
			c, changed := p.client.Get()
			if c != nil {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
