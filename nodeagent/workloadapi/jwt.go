package workloadapi

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/internal/audience"
	"github.com/writ-mesh/writ/nodeagent/attest"
)

const (
	// maxToken bounds a token that is to be validated, in bytes: it came in an HTTP
	// header.
	maxToken = 16 << 10
	// maxKeys bounds a set of keys, in bytes.
	maxKeys = 1 << 20
)

// Keys verify the JWT-SVIDs of a trust domain. The zero Keys are none.
type Keys struct {
	jwks   []byte
	bundle *jwtbundle.Bundle
}

// ParseKeys reads a JSON Web Key Set.
func ParseKeys(td spiffeid.TrustDomain, jwks []byte) (Keys, error) {
	if len(jwks) > maxKeys {
		return Keys{}, fmt.Errorf("keys of JWT-SVIDs have %d bytes: want %d at most", len(jwks), maxKeys)
	}
	b, err := jwtbundle.Parse(td, jwks)
	if err != nil {
		return Keys{}, fmt.Errorf("keys of JWT-SVIDs: %w", err)
	}
	return Keys{jwks: jwks, bundle: b}, nil
}

// Same tells whether jwks is what k was read from.
func (k Keys) Same(jwks []byte) bool { return k.bundle != nil && string(k.jwks) == string(jwks) }

// FetchJWTSVID implements the Workload API: a token for the caller's identity.
func (s *Server) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	lease, leave, err := s.enter(ctx, "FetchJWTSVID")
	if err != nil {
		return nil, err
	}
	resp, err := s.fetchJWTSVID(ctx, lease, req)
	leave(err)
	return resp, err
}

func (s *Server) fetchJWTSVID(ctx context.Context, lease *attest.Lease, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	audiences, err := audience.Check(req.GetAudience())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if wanted := req.GetSpiffeId(); wanted != "" {
		id, err := spiffeid.FromString(wanted)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "spiffe_id: %v", err)
		}
		if id != lease.ID {
			return nil, status.Errorf(codes.PermissionDenied, "the caller is %s and gets no token of another identity", lease.ID)
		}
	}
	token, err := s.cfg.Tokens.Fetch(ctx, lease.ProxyID, lease.ID, audiences)
	if err != nil {
		return nil, err
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: lease.ID.String(), Svid: token}}}, nil
}

// FetchJWTBundles implements the Workload API: the keys that verify JWT-SVIDs, and
// again whenever they change.
func (s *Server) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	lease, leave, err := s.enter(stream.Context(), "FetchJWTBundles")
	if err != nil {
		return err
	}
	err = s.streamJWTBundles(lease, stream)
	leave(err)
	return err
}

func (s *Server) streamJWTBundles(lease *attest.Lease, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	var sent *workload.JWTBundlesResponse
	for {
		keys, changed := s.cfg.Keys.Get()
		foreign, federated := s.cfg.Foreign.Get()
		resp := &workload.JWTBundlesResponse{Bundles: map[string][]byte{s.cfg.TrustDomain.IDString(): keys.jwks}}
		for _, f := range foreign {
			resp.Bundles[f.td.IDString()] = f.keys.jwks
		}
		if keys.bundle != nil && !proto.Equal(resp, sent) {
			if err := stream.Send(resp); err != nil {
				return err
			}
			sent = resp
		}
		if err := s.wait(stream.Context(), lease, changed, federated, nil, nil); err != nil {
			return err
		}
	}
}

// ValidateJWTSVID implements the Workload API: whether a token that somebody
// showed to the caller is good, and whose it is.
func (s *Server) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	_, leave, err := s.enter(ctx, "ValidateJWTSVID")
	if err != nil {
		return nil, err
	}
	resp, err := s.validate(req)
	leave(err)
	return resp, err
}

func (s *Server) validate(req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	// Without an audience the library would take a token for anybody.
	if _, err := audience.Check([]string{req.GetAudience()}); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if n := len(req.GetSvid()); n == 0 || n > maxToken {
		return nil, status.Errorf(codes.InvalidArgument, "the token has %d bytes: want 1 to %d", n, maxToken)
	}
	keys, _ := s.cfg.Keys.Get()
	if keys.bundle == nil {
		return nil, status.Error(codes.Unavailable, "the keys of the trust domain are not there yet; they come from the authority")
	}
	foreign, _ := s.cfg.Foreign.Get()
	token, err := jwtsvid.ParseAndValidate(req.GetSvid(), verifiers(keys, foreign), []string{req.GetAudience()})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(token.Claims)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "claims of the token: %v", err)
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: token.ID.String(), Claims: claims}, nil
}
