package nodeagent_test

import (
	"context"
	"io/fs"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/nodeagent/latest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// fakeJWT is the part of a fake authority that signs tokens, for whoever asks.
type fakeJWT struct {
	capb.UnimplementedJWTAuthorityServer
	jwks latest.Value[[]byte]
	life time.Duration

	mu     sync.Mutex
	keys   *jwtsvid.Keys
	issued int
}

// forgetful is a storage of keys for one test.
type forgetful struct{}

func (forgetful) Load() ([]byte, error) { return nil, fs.ErrNotExist }
func (forgetful) Save([]byte) error     { return nil }

func newFakeJWT(t testing.TB, life time.Duration) *fakeJWT {
	t.Helper()
	f := &fakeJWT{life: life}
	f.newKeys(t)
	return f
}

// newKeys replaces all keys, which makes every token invalid.
func (f *fakeJWT) newKeys(t testing.TB) {
	t.Helper()
	keys, err := jwtsvid.Open(t.Context(), jwtsvid.Config{Storage: forgetful{}, Life: 48 * time.Hour, MaxTTL: 24 * time.Hour, Log: slog.New(slog.DiscardHandler)}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	set, _ := keys.Current()
	f.mu.Lock()
	f.keys = keys
	f.mu.Unlock()
	f.jwks.Set(set.JWKS)
}

// sign makes a token for whomever a test wants.
func (f *fakeJWT) sign(id string, audiences []string) (jwtsvid.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.issued++
	v, err := spiffeid.FromString(id)
	if err != nil {
		return jwtsvid.Token{}, err
	}
	return f.keys.Sign(v, audiences, f.life, time.Now())
}

// IssueJWT implements writ.ca.v1.JWTAuthority.
func (f *fakeJWT) IssueJWT(_ context.Context, r *capb.IssueJWTRequest) (*capb.IssueJWTResponse, error) {
	tok, err := f.sign(r.GetSpiffeId(), r.GetAudiences())
	return &capb.IssueJWTResponse{Token: tok.Compact, ExpiresAt: timestamppb.New(tok.Expiry)}, err
}

func (f *fakeJWT) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.issued
}

// fakeFederation is the part of a fake authority that knows other trust domains.
type fakeFederation struct {
	capb.UnimplementedFederationServer
	known latest.Value[*capb.FederatedBundles]
}

// WatchFederated implements writ.ca.v1.Federation.
func (f *fakeFederation) WatchFederated(_ *capb.WatchFederatedRequest, s grpc.ServerStreamingServer[capb.FederatedBundles]) error {
	for {
		known, changed := f.known.Get()
		if err := s.Send(known); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}
