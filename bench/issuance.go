package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// issuance measures one X.509-SVID over the admin socket, P-256, 16 in flight.
// The floor parses and verifies the request and signs the leaf, nothing else: no
// call, no record.
func issuance(ctx context.Context, o options) ([]row, error) {
	const id = "spiffe://example.org/ns/bench/sa/svid"
	socket := "unix://" + filepath.Join(o.dir, "a")
	server, err := launch(ctx, socket, filepath.Join(o.bin, "writ-ca"), "-trust-domain", "example.org", "-state", filepath.Join(o.dir, "state"), "-admin", socket)
	if err != nil {
		return nil, err
	}
	defer server.stop()
	csrs, err := requests(id)
	if err != nil {
		return nil, err
	}
	mint := load{address: socket, connections: 4, inFlight: 16, call: func(ctx context.Context, c *grpc.ClientConn, worker, n int) error {
		resp, err := capb.NewAdminClient(c).Mint(ctx, &capb.MintRequest{SpiffeId: id, Csr: csrs[(worker*7+n)%len(csrs)]})
		if err == nil && len(resp.GetChain()) == 0 {
			return errors.New("no certificate in the answer")
		}
		return err
	}}
	var ours, floor []time.Duration
	var rate []float64
	for range o.rounds {
		got, err := mint.measure(ctx, o, server, nil)
		if err != nil {
			return nil, err
		}
		f, err := signFloorCPU(ctx, o.each)
		if err != nil {
			return nil, err
		}
		ours, floor, rate = append(ours, got.perOp), append(floor, f), append(rate, got.rate)
	}
	return []row{{name: "issuance of an X.509-SVID, P-256", ours: median(ours), floor: median(floor), rate: median(rate), note: "goal 1.25"}}, nil
}
