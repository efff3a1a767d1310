package workloadapi

import (
	"encoding/pem"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/nodeagent/attest"
	"github.com/writ-mesh/writ/nodeagent/svid"
)

// FetchX509SVID implements the Workload API: the caller's certificate and key, and
// again whenever it was renewed or the roots changed.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	lease, leave, err := s.enter(stream.Context(), "FetchX509SVID")
	if err != nil {
		return err
	}
	err = s.streamX509SVID(lease, stream)
	leave(err)
	return err
}

func (s *Server) streamX509SVID(lease *attest.Lease, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	sub := s.cfg.SVIDs.Subscribe(lease.ProxyID, lease.ID)
	defer sub.Close()
	var sent *svid.SVID
	var sentRoots string
	for {
		v, renewed := sub.Current()
		roots, changed := s.cfg.Roots.Get()
		if v != nil && len(roots) > 0 && (v != sent || string(roots) != sentRoots) {
			if err := stream.Send(x509Response(v, roots)); err != nil {
				return err
			}
			sent, sentRoots = v, string(roots)
		}
		if err := s.wait(stream.Context(), lease, renewed, changed); err != nil {
			return err
		}
	}
}

func x509Response(v *svid.SVID, roots []byte) *workload.X509SVIDResponse {
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId: v.ID().String(), X509Svid: der(v.ChainPEM()), X509SvidKey: der(v.KeyPEM()), Bundle: der(roots),
	}}}
}

// FetchX509Bundles implements the Workload API: the roots of the trust domain, and
// again whenever they change.
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	lease, leave, err := s.enter(stream.Context(), "FetchX509Bundles")
	if err != nil {
		return err
	}
	err = s.streamX509Bundles(lease, stream)
	leave(err)
	return err
}

func (s *Server) streamX509Bundles(lease *attest.Lease, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	var sent string
	for {
		roots, changed := s.cfg.Roots.Get()
		if len(roots) > 0 && string(roots) != sent {
			resp := &workload.X509BundlesResponse{Bundles: map[string][]byte{s.cfg.TrustDomain.IDString(): der(roots)}}
			if err := stream.Send(resp); err != nil {
				return err
			}
			sent = string(roots)
		}
		if err := s.wait(stream.Context(), lease, changed, nil); err != nil {
			return err
		}
	}
}

// der joins the blocks of a PEM file, which is how the Workload API has chains and
// bundles.
func der(data []byte) []byte {
	var out []byte
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return out
		}
		out, data = append(out, block.Bytes...), rest
	}
}
