package nodeagent

import (
	"context"
	"log/slog"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/nodeagent/workloadapi"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// IssueJWT implements workloadapi.TokenIssuer.
func (a *authority) IssueJWT(ctx context.Context, id spiffeid.ID, audiences []string) (string, error) {
	client := a.tokens.Load()
	if client == nil {
		return "", status.Error(codes.Unavailable, errNoIdentity.Error())
	}
	resp, err := (*client).IssueJWT(ctx, &capb.IssueJWTRequest{SpiffeId: id.String(), Audiences: audiences})
	return resp.GetToken(), err
}

// setKeys takes the keys of JWT-SVIDs from a bundle. Without any, or with keys that
// cannot be read, those known last stay.
func (a *authority) setKeys(jwks []byte) {
	if old, _ := a.keys.Get(); len(jwks) == 0 || old.Same(jwks) {
		return
	}
	keys, err := workloadapi.ParseKeys(a.td, jwks)
	if err != nil {
		a.log.Warn("keys of JWT-SVIDs are not used", slog.Any("error", err))
		return
	}
	a.keys.Set(keys)
}
