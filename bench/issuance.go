package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

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
	var measured []row
	for range o.rounds {
		got, err := mint.measure(ctx, o, server, nil)
		if err != nil {
			return nil, err
		}
		f, err := signFloorCPU(ctx, o.each)
		if err != nil {
			return nil, err
		}
		measured = append(measured, row{name: "issuance of an X.509-SVID, P-256", ours: got.perOp, floor: f, rate: got.rate})
	}
	rows := []row{medianRatio(measured)}
	rows[0].note += "; goal 1.25"
	more, err := issuanceOverTLS(ctx, o)
	return append(rows, more...), err
}

// issuanceOverTLS is what node agents cost who ask for a workload's certificate, and
// who join with a token, the TLS handshake included.
func issuanceOverTLS(ctx context.Context, o options) ([]row, error) {
	a, err := launchAuthority(ctx, o, filepath.Join(o.dir, "tls"))
	if err != nil {
		return nil, err
	}
	defer a.stop()
	const id = "spiffe://" + trustDomain + "/ns/bench/sa/svid"
	if err := a.register(ctx, 1, func(int) *capb.PutRegistrationRequest {
		return &capb.PutRegistrationRequest{SpiffeId: id, AllNodes: true, Facts: []string{"unix:uid:1000"}}
	}); err != nil {
		return nil, err
	}
	svids, err := mintAgents(ctx, a, 1)
	if err != nil {
		return nil, err
	}
	bundle, err := a.bundle()
	if err != nil {
		return nil, err
	}
	csrs, err := requests(id)
	if err != nil {
		return nil, err
	}
	server := tlsconfig.AuthorizeID(spiffeid.RequireFromPath(bundle.TrustDomain(), "/writ/ca"))
	issue := load{
		address: a.listen, connections: 4, inFlight: 16, creds: credentials.NewTLS(tlsconfig.MTLSClientConfig(svids[0], bundle, server)),
		call: func(ctx context.Context, c *grpc.ClientConn, worker, n int) error {
			_, err := capb.NewCertificateAuthorityClient(c).Issue(ctx, &capb.IssueRequest{SpiffeId: id, Csr: csrs[(worker*7+n)%len(csrs)]})
			return err
		},
	}
	got, err := issue.measure(ctx, o, a.process, nil)
	if err != nil {
		return nil, err
	}
	rows := []row{{name: "issuance to a node agent, mutual TLS", ours: got.perOp, rate: got.rate}}
	joined, err := a.joins(ctx, credentials.NewTLS(tlsconfig.TLSClientConfig(bundle, server)))
	return append(rows, joined), err
}

// joins has agents join by tokens, each on a connection of its own.
func (a *authority) joins(ctx context.Context, creds credentials.TransportCredentials) (row, error) {
	const n = 500
	tokens := make([]string, n)
	for i := range tokens {
		var err error
		if tokens[i], err = a.joinToken(ctx, nodeID(agentName(i))); err != nil {
			return row{}, err
		}
	}
	csrs, err := requests("")
	if err != nil {
		return row{}, err
	}
	before, err := a.cpu()
	if err != nil {
		return row{}, err
	}
	begin := time.Now()
	err = parallel(ctx, n, 16, func(ctx context.Context, i int) error {
		conn, err := grpc.NewClient(a.listen, grpc.WithTransportCredentials(creds))
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_, err = capb.NewCertificateAuthorityClient(conn).Join(ctx, &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: tokens[i]}, Csr: csrs[i%len(csrs)]})
		return err
	})
	if err != nil {
		return row{}, err
	}
	passed := time.Since(begin)
	after, err := a.cpu()
	return row{name: "a node agent joins by a token, TLS handshake", ours: (after - before) / n, rate: n / passed.Seconds()}, err
}
