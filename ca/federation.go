package ca

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// foreignDir in the state directory has the bundles of other trust domains.
const foreignDir = "federated"

// bundleSource is the bundle as other trust domains see it. It implements
// spiffebundle.Source.
type bundleSource struct {
	a *Authority
	// hint is how often others are told to look for changes.
	hint time.Duration
}

// GetBundleForTrustDomain implements spiffebundle.Source.
func (s bundleSource) GetBundleForTrustDomain(td spiffeid.TrustDomain) (*spiffebundle.Bundle, error) {
	if td != s.a.td {
		return nil, fmt.Errorf("this is the authority of %s, not of %s", s.a.td, td)
	}
	t := s.a.trusted()
	b := s.a.bundleProto(t)
	keys, err := jwtbundle.Parse(td, b.GetJwks())
	if err != nil {
		return nil, err
	}
	out := spiffebundle.FromX509Bundle(t.bundle)
	out.SetJWTAuthorities(keys.JWTAuthorities())
	out.SetSequenceNumber(b.GetSequence())
	out.SetRefreshHint(s.hint)
	return out, nil
}

// federationServer implements writ.ca.v1.Federation.
type federationServer struct {
	capb.UnimplementedFederationServer

	s *server
}

// methods says who may call what.
func (f *federationServer) methods() rpc.Methods {
	return rpc.Methods{capb.Federation_WatchFederated_FullMethodName: rpc.Or(rpc.AnyNode(), rpc.AnyService(services()...))}
}

// WatchFederated implements writ.ca.v1.Federation.
func (f *federationServer) WatchFederated(_ *capb.WatchFederatedRequest, stream grpc.ServerStreamingServer[capb.FederatedBundles]) error {
	for {
		bundles, changed := f.s.a.foreign.Current()
		resp, err := federatedProto(bundles)
		if err != nil {
			return refuse(internal, "the bundles of other trust domains cannot be sent").because(err)
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-f.s.stopping:
			return refuse(unavailable, "the authority is stopping; connect again")
		}
	}
}

func federatedProto(bundles []*spiffebundle.Bundle) (*capb.FederatedBundles, error) {
	out := new(capb.FederatedBundles)
	for _, b := range bundles {
		jwks, err := b.JWTBundle().Marshal()
		if err != nil {
			return nil, err
		}
		f := &capb.FederatedBundle{TrustDomain: b.TrustDomain().Name(), Jwks: jwks}
		for _, c := range b.X509Authorities() {
			f.Roots = append(f.Roots, c.Raw)
		}
		out.Bundles = append(out.Bundles, f)
	}
	return out, nil
}
