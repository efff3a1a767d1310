package nodeagent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/nodeagent/workloadapi"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// jwtParallel bounds the requests for tokens under way; with those of package svid
// it is below what the authority lets one node have (limits.caller_calls).
const jwtParallel = 32

// IssueJWT implements workloadapi.TokenIssuer. If the authority asks to wait, and ctx
// has the time, it waits.
func (a *authority) IssueJWT(ctx context.Context, id spiffeid.ID, audiences []string) (string, error) {
	client := a.tokens.Load()
	if client == nil {
		return "", status.Error(codes.Unavailable, errNoIdentity.Error())
	}
	select {
	case a.asking <- struct{}{}:
		defer func() { <-a.asking }()
	case <-ctx.Done():
		return "", status.FromContextError(ctx.Err()).Err()
	}
	for {
		resp, err := (*client).IssueJWT(ctx, &capb.IssueJWTRequest{SpiffeId: id.String(), Audiences: audiences})
		after := rpc.RetryAfter(err)
		if after == 0 {
			return resp.GetToken(), err
		}
		after += rand.N(after/2 + 1)
		if end, ok := ctx.Deadline(); ok && time.Until(end) < after {
			return "", err
		}
		select {
		case <-time.After(after):
		case <-ctx.Done():
			return "", status.FromContextError(ctx.Err()).Err()
		}
	}
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
