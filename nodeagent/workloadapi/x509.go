package workloadapi

import (
	"encoding/pem"
	"slices"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/nodeagent/attest"
	"github.com/writ-mesh/writ/nodeagent/svid"
)

// FetchX509SVID implements the Workload API: the caller's certificate and key, and
// again whenever it was renewed, or roots or what is revoked changed.
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
	var sent *workload.X509SVIDResponse
	for {
		v, renewed := sub.Current()
		roots, changed := s.cfg.Roots.Get()
		lists, revoked := s.cfg.CRLs.Get()
		foreign, federated := s.cfg.Foreign.Get()
		if v != nil && len(roots) > 0 {
			if resp := x509Response(v, roots, lists, foreign); !proto.Equal(resp, sent) {
				if err := stream.Send(resp); err != nil {
					return err
				}
				sent = resp
			}
		}
		if err := s.wait(stream.Context(), lease, renewed, changed, revoked, federated); err != nil {
			return err
		}
	}
}

func x509Response(v *svid.SVID, roots, lists []byte, foreign []Foreign) *workload.X509SVIDResponse {
	resp := &workload.X509SVIDResponse{
		Svids: []*workload.X509SVID{{
			SpiffeId: v.ID().String(), X509Svid: der(v.ChainPEM()), X509SvidKey: der(v.KeyPEM()), Bundle: der(roots),
		}},
		Crl:              blocks(lists),
		FederatedBundles: make(map[string][]byte),
	}
	for _, f := range foreign {
		resp.FederatedBundles[f.td.IDString()] = f.roots
	}
	return resp
}

// FetchX509Bundles implements the Workload API: the roots of the trust domain and of
// the foreign ones, and again whenever they change.
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
	var sent *workload.X509BundlesResponse
	for {
		roots, changed := s.cfg.Roots.Get()
		lists, revoked := s.cfg.CRLs.Get()
		foreign, federated := s.cfg.Foreign.Get()
		resp := &workload.X509BundlesResponse{Crl: blocks(lists), Bundles: map[string][]byte{s.cfg.TrustDomain.IDString(): der(roots)}}
		for _, f := range foreign {
			resp.Bundles[f.td.IDString()] = f.roots
		}
		if len(roots) > 0 && !proto.Equal(resp, sent) {
			if err := stream.Send(resp); err != nil {
				return err
			}
			sent = resp
		}
		if err := s.wait(stream.Context(), lease, changed, revoked, federated, nil); err != nil {
			return err
		}
	}
}

// der joins the blocks of a PEM file, which is how the Workload API has chains and
// bundles.
func der(data []byte) []byte { return slices.Concat(blocks(data)...) }

// blocks are those of a PEM file, which is how the Workload API has certificate
// revocation lists.
func blocks(data []byte) [][]byte {
	var out [][]byte
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return out
		}
		out, data = append(out, block.Bytes), rest
	}
}
