package ca

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/join"
	"github.com/writ-mesh/writ/ca/placement"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// tokenRefused is all that a stranger learns about a token.
const tokenRefused = "the join token is unknown, expired or already used; ask for a new one"

// bundleSequence is that of a bundle that has never changed.
const bundleSequence = 1

// server implements writ.ca.v1.CertificateAuthority.
type server struct {
	capb.UnimplementedCertificateAuthorityServer

	a      *Authority
	placed *placement.Table
	// wait bounds how long Issue waits for a placement.
	wait time.Duration
	// stopping ends the streams.
	stopping <-chan struct{}
}

// methods says who may call what.
func (s *server) methods() rpc.Methods {
	own := rpc.Or(rpc.AnyNode(), anyService)
	return rpc.Methods{
		capb.CertificateAuthority_Join_FullMethodName:        rpc.Anyone(),
		capb.CertificateAuthority_Renew_FullMethodName:       own,
		capb.CertificateAuthority_Issue_FullMethodName:       rpc.AnyNode(),
		capb.CertificateAuthority_WatchBundle_FullMethodName: own,
	}
}

// anyService lets all services of Writ in but the authority, whose certificate
// never leaves its process.
func anyService(c rpc.Caller) error {
	if name, ok := identity.ServiceOf(c.ID); ok && name != identity.CA {
		return nil
	}
	return status.Errorf(codes.PermissionDenied, "%s may not call this method; it is for node agents and services of Writ", c)
}

// Join implements writ.ca.v1.CertificateAuthority.
func (s *server) Join(ctx context.Context, req *capb.JoinRequest) (*capb.CertificateResponse, error) {
	begin, o := s.a.now(), order{kind: kindJoin, requester: "join-token"}
	cert, err := s.join(ctx, &o, req)
	s.a.answer(ctx, o, begin, cert, err)
	if err != nil {
		return nil, err
	}
	return s.a.response(cert), nil
}

// join looks at the token before the request, so that a stranger costs little.
func (s *server) join(ctx context.Context, o *order, req *capb.JoinRequest) (*x509.Certificate, error) {
	token, err := join.Parse(req.GetToken())
	if err != nil {
		return nil, refuse(denied, tokenRefused).because(err)
	}
	kept, err := s.a.store.Token(ctx, token.ID)
	if err != nil {
		return nil, recording(err)
	}
	if !token.Matches(kept.Hash) {
		return nil, refuse(denied, tokenRefused).because(errTokenSecret)
	}
	if !s.a.now().Before(kept.ExpiresAt) {
		return nil, refuse(denied, tokenRefused).because(errTokenExpired)
	}
	if o.id, err = spiffeid.FromString(kept.SPIFFEID); err != nil {
		return nil, refuse(internal, "the join token cannot be read").because(err)
	}
	if o.csr, err = parseCSR(req.GetCsr()); err != nil {
		return nil, err
	}
	o.tokenID = token.ID
	return s.a.issue(ctx, *o)
}

// Renew implements writ.ca.v1.CertificateAuthority.
func (s *server) Renew(ctx context.Context, req *capb.RenewRequest) (*capb.CertificateResponse, error) {
	begin, caller := s.a.now(), rpc.CallerFrom(ctx)
	o := order{kind: kindRenew, requester: caller.ID.String(), id: caller.ID}
	cert, err := s.renew(ctx, &o, req)
	s.a.answer(ctx, o, begin, cert, err)
	if err != nil {
		return nil, err
	}
	return s.a.response(cert), nil
}

func (s *server) renew(ctx context.Context, o *order, req *capb.RenewRequest) (*x509.Certificate, error) {
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	var err error
	if o.csr, err = parseCSR(req.GetCsr()); err != nil {
		return nil, err
	}
	return s.a.issue(ctx, *o)
}

// Issue implements writ.ca.v1.CertificateAuthority.
func (s *server) Issue(ctx context.Context, req *capb.IssueRequest) (*capb.CertificateResponse, error) {
	begin := s.a.now()
	o := order{kind: kindIssue, requester: rpc.CallerFrom(ctx).ID.String()}
	cert, err := s.issue(ctx, &o, req)
	s.a.answer(ctx, o, begin, cert, err)
	if err != nil {
		return nil, err
	}
	return s.a.response(cert), nil
}

func (s *server) issue(ctx context.Context, o *order, req *capb.IssueRequest) (*x509.Certificate, error) {
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	var err error
	if o.id, err = parseID(req.GetSpiffeId()); err != nil {
		return nil, err
	}
	if err := s.placedOn(ctx, o.id); err != nil {
		return nil, err
	}
	if o.ttl, err = wantedTTL(req.GetTtl()); err != nil {
		return nil, err
	}
	if o.csr, err = parseCSR(req.GetCsr()); err != nil {
		return nil, err
	}
	return s.a.issue(ctx, *o)
}

// placedOn checks that the mesh places id on the caller's node.
func (s *server) placedOn(ctx context.Context, id spiffeid.ID) error {
	node, ok := identity.NodeOf(rpc.CallerFrom(ctx).ID)
	if _, _, workload := identity.WorkloadOf(id); !ok || !workload || !id.MemberOf(s.a.td) {
		return refuse(denied, "%s is no workload of the trust domain %s", id, s.a.td.Name())
	}
	wait, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	if !s.placed.Wait(wait, node, id) {
		if ctx.Err() != nil {
			return refuse(gone, "the caller did not wait for a placement")
		}
		return refuse(denied, "the mesh does not place %s on node %s", id, node)
	}
	return nil
}

// fresh refuses a caller whose certificate expired after he connected.
func (s *server) fresh(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return refuse(stale, "no client certificate")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return refuse(stale, "no client certificate")
	}
	if end := info.State.PeerCertificates[0].NotAfter; !s.a.now().Before(end) {
		return refuse(stale, "the client certificate of this connection expired at %s; connect anew with the current one", end.UTC().Format(time.RFC3339))
	}
	return nil
}

// WatchBundle implements writ.ca.v1.CertificateAuthority. The bundle changes only
// when the root does, and that is with a new process.
func (s *server) WatchBundle(_ *capb.WatchBundleRequest, stream grpc.ServerStreamingServer[capb.Bundle]) error {
	if err := stream.Send(s.a.bundleProto()); err != nil {
		return err
	}
	select {
	case <-stream.Context().Done():
		return stream.Context().Err()
	case <-s.stopping:
		return refuse(unavailable, "the authority is stopping; connect again")
	}
}

// response hands out a certificate that is in the ledger.
func (a *Authority) response(cert *x509.Certificate) *capb.CertificateResponse {
	resp := &capb.CertificateResponse{Chain: [][]byte{cert.Raw}, Bundle: a.bundleProto()}
	for _, c := range a.signer.Intermediates() {
		resp.Chain = append(resp.Chain, c.Raw)
	}
	return resp
}

func (a *Authority) bundleProto() *capb.Bundle {
	b := &capb.Bundle{TrustDomain: a.td.Name(), Sequence: bundleSequence}
	for _, c := range a.bundle.X509Authorities() {
		b.Roots = append(b.Roots, c.Raw)
	}
	return b
}

func parseCSR(der []byte) (csr.Request, error) {
	req, err := csr.Parse(der)
	if err != nil {
		return csr.Request{}, refuse(invalid, "%v", err)
	}
	return req, nil
}

func parseID(s string) (spiffeid.ID, error) {
	id, err := csr.ParseID(s)
	if err != nil {
		return spiffeid.ID{}, refuse(invalid, "%v", err)
	}
	return id, nil
}

// wantedTTL reads a wished life; zero means none is wished.
func wantedTTL(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() < 0 {
		return 0, refuse(invalid, "ttl is no positive duration")
	}
	return d.AsDuration(), nil
}
