package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/placement"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// The bounds of what a watcher of the bundle may say about itself.
const (
	maxWaiting     = 10_000
	maxAuthorities = 16
)

// server implements writ.ca.v1.CertificateAuthority.
type server struct {
	capb.UnimplementedCertificateAuthorityServer

	a      *Authority
	joiner joiner
	placed *placement.Table
	// wait bounds how long Issue waits for a placement.
	wait time.Duration
	// stopping ends the streams.
	stopping <-chan struct{}
}

// methods says who may call what.
func (s *server) methods() rpc.Methods {
	own := rpc.Or(rpc.AnyNode(), rpc.AnyService(services()...))
	return rpc.Methods{
		capb.CertificateAuthority_Join_FullMethodName:        rpc.Anyone(),
		capb.CertificateAuthority_Renew_FullMethodName:       own,
		capb.CertificateAuthority_Issue_FullMethodName:       rpc.AnyNode(),
		capb.CertificateAuthority_WatchBundle_FullMethodName: own,
	}
}

// Join implements writ.ca.v1.CertificateAuthority.
func (s *server) Join(ctx context.Context, req *capb.JoinRequest) (*capb.CertificateResponse, error) {
	return s.a.response(s.a.fulfil(ctx, order{kind: kindJoin}, func(o *order) error {
		e, err := s.joiner.prove(ctx, req)
		o.id, o.requester, o.proof, o.facts = e.id, e.requester, e.proof, e.facts
		if err != nil {
			return err
		}
		o.csr, err = parseCSR(req.GetCsr())
		return err
	}))
}

// Renew implements writ.ca.v1.CertificateAuthority.
func (s *server) Renew(ctx context.Context, req *capb.RenewRequest) (*capb.CertificateResponse, error) {
	caller := rpc.CallerFrom(ctx)
	return s.a.response(s.a.fulfil(ctx, order{kind: kindRenew, requester: caller.ID.String(), id: caller.ID}, func(o *order) (err error) {
		if err = s.fresh(ctx); err != nil {
			return err
		}
		o.csr, err = parseCSR(req.GetCsr())
		return err
	}))
}

// Issue implements writ.ca.v1.CertificateAuthority.
func (s *server) Issue(ctx context.Context, req *capb.IssueRequest) (*capb.CertificateResponse, error) {
	return s.a.response(s.a.fulfil(ctx, order{kind: kindIssue, requester: rpc.CallerFrom(ctx).ID.String()}, func(o *order) (err error) {
		if err = s.fresh(ctx); err != nil {
			return err
		}
		if o.id, err = parseID(req.GetSpiffeId()); err != nil {
			return err
		}
		if err = s.placedOn(ctx, o.id); err != nil {
			return err
		}
		return o.wanted(req.GetTtl(), req.GetCsr())
	}))
}

// placedOn checks that the caller's node may have id for a workload: the mesh places
// it there, or it is registered.
func (s *server) placedOn(ctx context.Context, id spiffeid.ID) error {
	node, ok := identity.NodeOf(rpc.CallerFrom(ctx).ID)
	if !ok || !s.a.forWorkloads(id) {
		return refuse(denied, "%s is no workload of the trust domain %s", id, s.a.td.Name())
	}
	wait, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	if !s.placed.Wait(wait, node, id) {
		if ctx.Err() != nil {
			return refuse(gone, "the caller did not wait for a placement")
		}
		return refuse(denied, "the mesh does not place %s on node %s, and it is not registered for it", id, node)
	}
	return nil
}

// fresh refuses a caller whose certificate expired or was revoked after he connected.
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
	if err := s.a.rooted(ctx, info.State.PeerCertificates); err != nil {
		return err
	}
	s.a.flag(ctx, info.State.PeerCertificates[0])
	return s.unrevoked(ctx)
}

// unrevoked refuses a caller whose certificate was revoked after he connected.
func (s *server) unrevoked(ctx context.Context) error {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			return s.a.revocations.usable(info.State.PeerCertificates[0])
		}
	}
	return refuse(stale, "no client certificate")
}

// WatchBundle implements writ.ca.v1.CertificateAuthority. What a watcher says
// counts for itself alone, and as long as the stream is open.
func (s *server) WatchBundle(stream grpc.BidiStreamingServer[capb.WatchBundleRequest, capb.Bundle]) error {
	ctx := stream.Context()
	report := s.a.keeper.watch(rpc.CallerFrom(ctx).ID)
	defer s.a.keeper.forget(report)
	ended := make(chan error, 1)
	go func() {
		if err := s.a.keeper.hear(report, stream.Recv); err != nil {
			ended <- err
		}
	}()
	for {
		t := s.a.trusted()
		_, keys := s.a.keys.current()
		if err := stream.Send(s.a.bundleProto(t)); err != nil {
			return err
		}
		select {
		case <-t.replaced:
		case <-keys:
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stopping:
			return refuse(unavailable, "the authority is stopping; connect again")
		}
	}
}

// hear takes what a watcher says until its stream ends, which it does when the
// handler returns. A watcher of an earlier version says nothing, and is told of
// bundles all the same.
func (k *keeper) hear(r *report, recv func() (*capb.WatchBundleRequest, error)) error {
	for {
		req, err := recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case len(req.GetWaiting()) > maxWaiting || len(req.GetAuthorities()) > maxAuthorities:
			return refuse(invalid, "at most %d names of proxies and %d authorities", maxWaiting, maxAuthorities)
		}
		k.heard(r, req)
	}
}

// response hands out a certificate that is in the ledger, or says why there is none.
func (a *Authority) response(cert *x509.Certificate, err error) (*capb.CertificateResponse, error) {
	if err != nil {
		return nil, err
	}
	t, err := a.covering(cert)
	if err != nil {
		return nil, err
	}
	resp := &capb.CertificateResponse{Bundle: a.bundleProto(t)}
	for _, c := range t.chain(cert) {
		resp.Chain = append(resp.Chain, c.Raw)
	}
	return resp, nil
}

// covering gives the trust to hand a certificate out with. There is none if its
// root was dropped since it was signed, which takes a forced rotation.
func (a *Authority) covering(cert *x509.Certificate) (*trust, error) {
	t := a.trusted()
	if !t.covers(cert) {
		return nil, refuse(unavailable, "the root was replaced just now; ask again")
	}
	return t, nil
}

// bundleProto is the bundle of a trust, with the keys of JWT-SVIDs of now.
func (a *Authority) bundleProto(t *trust) *capb.Bundle {
	jwt, _ := a.keys.current()
	// Both rise on their own and never fall, and so does their sum.
	return &capb.Bundle{
		TrustDomain: a.td.Name(), Sequence: t.state.Sequence + jwt.version, Roots: t.roots, Jwks: jwt.jwks, ActiveAuthority: root.KeyID(t.signer.Issuer()),
	}
}

// rootsSequence is what the sequence of a bundle that somebody had says of the
// roots in it: at least that. The version of the keys was not higher than now.
func (a *Authority) rootsSequence(bundle uint64) uint64 {
	jwt, _ := a.keys.current()
	return bundle - min(bundle, jwt.version)
}

// wanted takes the life and the request of a caller who may choose both.
func (o *order) wanted(ttl *durationpb.Duration, der []byte) (err error) {
	if o.ttl, err = wantedTTL(ttl); err != nil {
		return err
	}
	o.csr, err = parseCSR(der)
	return err
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
