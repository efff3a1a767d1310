package authz

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/internal/revoked"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

const (
	// tokensKey is the context extension of a check that only asks whether the
	// request's token, which Envoy verified, is revoked.
	tokensKey = "writ.tokens"
	// revocationKind stands before the reason in DeniedByHeader.
	revocationKind = "TokenRevocation "
	// saidRevoked is what clients are told.
	saidRevoked = "the token is revoked"
)

// Back-off of following pilot, and how often what has expired is thrown away.
const (
	revokedLeast  = 50 * time.Millisecond
	revokedMost   = time.Second
	revokedExpire = time.Minute
)

// revokedTokens is which tokens are revoked, as pilot says. While pilot is away what
// it said last stays in force; before it has said anything nothing is known, and
// that is no "none".
type revokedTokens struct {
	// table is nil until everything has come once.
	table   atomic.Pointer[revoked.Table]
	metrics *metrics
	log     *slog.Logger
}

// follow keeps the table as pilot says, until ctx ends.
func (r *revokedTokens) follow(ctx context.Context, pilot grpc.ClientConnInterface) error {
	return rpc.Follow(ctx, r.log, "revoked tokens", revokedLeast, revokedMost, func(ctx context.Context) (worked bool, err error) {
		stream, err := pilotpb.NewTokenRevocationFeedClient(pilot).WatchRevokedTokens(ctx, &pilotpb.WatchRevokedTokensRequest{})
		if err != nil {
			return false, err
		}
		// next is being filled, and takes the place of the table when it is complete.
		var next *revoked.Table
		for {
			m, err := stream.Recv()
			if err != nil {
				return worked, err
			}
			worked = true
			if m.GetBegin() {
				next = new(revoked.Table)
			}
			into := next
			if into == nil {
				into = r.table.Load()
			}
			if into == nil {
				return worked, fmt.Errorf("a change came before there was anything to change")
			}
			if err := apply(into, m); err != nil {
				return worked, err
			}
			if next != nil && m.GetComplete() {
				r.table.Store(next)
				next = nil
				r.log.InfoContext(ctx, "revoked tokens known", slog.Int("revocations", into.Len()))
			}
			r.metrics.revokedTokens.Set(float64(r.len()))
		}
	})
}

func apply(t *revoked.Table, m *pilotpb.WatchRevokedTokensResponse) error {
	for _, e := range m.GetPut() {
		k, err := keyOf(e.GetKey())
		if err != nil {
			return err
		}
		t.Put(revoked.Entry{Key: k, Before: e.GetBefore(), Until: e.GetUntil()})
	}
	for _, b := range m.GetDeleted() {
		k, err := keyOf(b)
		if err != nil {
			return err
		}
		t.Delete(k)
	}
	return nil
}

func keyOf(b []byte) (k revoked.Key, err error) {
	if len(b) != len(k) {
		return k, fmt.Errorf("a key has %d bytes, want %d", len(b), len(k))
	}
	return revoked.Key(b), nil
}

// expire throws away what concerns no token any more, until ctx ends.
func (r *revokedTokens) expire(ctx context.Context) error {
	return service.Every(ctx, revokedExpire, func(now time.Time) {
		if t := r.table.Load(); t != nil && t.Expire(now) > 0 {
			r.metrics.revokedTokens.Set(float64(t.Len()))
		}
	})
}

func (r *revokedTokens) len() int {
	if t := r.table.Load(); t != nil {
		return t.Len()
	}
	return 0
}

// decideToken answers a check that only asks about the token.
func (s *server) decideToken(req *authv3.CheckRequest, v *verdict) {
	payload := envoyPayload(req)
	switch {
	case payload == nil:
		v.fail("", saidNotDecided, "a check of a token has none")
	case s.revoked == nil || s.revoked.table.Load() == nil:
		v.fail("", saidNotDecided, "it is not known yet which tokens are revoked")
	default:
		v.allow = !s.refuseRevoked(req, v)
	}
}

// refuseRevoked refuses a request whose token Envoy verified and that is revoked. What
// is not known refuses nothing here: proxies enforce revocation themselves, or ask by
// decideToken.
func (s *server) refuseRevoked(req *authv3.CheckRequest, v *verdict) bool {
	if s.revoked == nil {
		return false
	}
	t := s.revoked.table.Load()
	if t == nil {
		return false
	}
	why := revoked.NotRevoked
	// Where several tokens were required, each of them.
	for _, x := range req.GetAttributes().GetMetadataContext().GetFilterMetadata()[jwtFilter].GetFields() {
		if payload := x.GetStructValue(); payload != nil && why == revoked.NotRevoked {
			why = t.Check(tokenOf(payload))
		}
	}
	if why == revoked.NotRevoked {
		return false
	}
	v.allow, v.revocation, v.public, v.detail = false, why, saidRevoked, "the token is revoked ("+string(why)+")"
	return true
}

// envoyPayload is the payload that jwt_authn verified, nil if there is none.
func envoyPayload(req *authv3.CheckRequest) *structpb.Struct {
	return req.GetAttributes().GetMetadataContext().GetFilterMetadata()[jwtFilter].GetFields()[jwtPayload].GetStructValue()
}

// tokenOf reads what a revocation may be by. Claims of another type count as missing,
// as in Envoy's filter.
func tokenOf(payload *structpb.Struct) revoked.Token {
	f := payload.GetFields()
	iat, number := f["iat"].GetKind().(*structpb.Value_NumberValue)
	t := revoked.Token{
		Issuer: f["iss"].GetStringValue(), Subject: f["sub"].GetStringValue(), ID: f["jti"].GetStringValue(), HasIssuedAt: number,
	}
	if number {
		t.IssuedAt = iat.NumberValue
	}
	return t
}

// refuses tells why a token that this service verified is not believed, nil if it is.
// What is not known yet believes nobody.
func (r *revokedTokens) refuses(t revoked.Token) error {
	if r == nil {
		return nil
	}
	table := r.table.Load()
	if table == nil {
		return fmt.Errorf("it is not known yet which tokens are revoked")
	}
	if why := table.Check(t); why != revoked.NotRevoked {
		return fmt.Errorf("token is revoked (%s)", why)
	}
	return nil
}

// deniedBy is what DeniedByHeader says of a refusal, empty if it has no name.
func (v *verdict) deniedBy() string {
	switch {
	case v.revocation != revoked.NotRevoked:
		return revocationKind + string(v.revocation)
	case v.policy != "":
		return regoKind + v.policy
	}
	return ""
}
