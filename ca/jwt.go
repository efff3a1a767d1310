package ca

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/internal/audience"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// jwtKeysFile in the state directory holds the keys that sign JWT-SVIDs.
const jwtKeysFile = "jwt-keys.json"

// minJWTTTL is the shortest life of a token; like that of certificates it leaves
// time for a renewal at half life.
const minJWTTTL = 10 * time.Second

// JWTConfig says how JWT-SVIDs are issued.
type JWTConfig struct {
	// TTL is the life of a token if nobody asks for another.
	TTL config.Duration `yaml:"ttl"`
	// MaxTTL is the longest life that anybody gets.
	MaxTTL config.Duration `yaml:"max_ttl"`
	// KeyTTL is how long a key signs before the next one does. The next one is
	// published half as long before.
	KeyTTL config.Duration `yaml:"key_ttl"`
}

func defaultJWT() JWTConfig {
	return JWTConfig{
		TTL: config.Duration(5 * time.Minute), MaxTTL: config.Duration(time.Hour),
		KeyTTL: config.Duration(24 * time.Hour),
	}
}

func (c JWTConfig) validate(within func(key string, d config.Duration, low, high time.Duration)) {
	within("jwt.key_ttl", c.KeyTTL, 2*minJWTTTL, 365*24*time.Hour)
	within("jwt.max_ttl", c.MaxTTL, minJWTTTL, max(c.KeyTTL.D()/2, minJWTTTL))
	within("jwt.ttl", c.TTL, minJWTTTL, max(c.MaxTTL.D(), minJWTTTL))
}

// jwtKeys is what the keys are opened with.
func (c *Config) jwtKeys(log *slog.Logger) jwtsvid.Config {
	return jwtsvid.Config{
		Storage: jwtsvid.File(filepath.Join(c.State, jwtKeysFile)),
		Life:    c.JWT.KeyTTL.D(), MaxTTL: c.JWT.MaxTTL.D(), Log: log,
	}
}

// kindJWT is a request for a JWT-SVID, as in the metrics.
const kindJWT = "jwt"

// jwtServer implements writ.ca.v1.JWTAuthority.
type jwtServer struct {
	capb.UnimplementedJWTAuthorityServer

	s *server
}

// methods says who may call what.
func (j *jwtServer) methods() rpc.Methods {
	return rpc.Methods{capb.JWTAuthority_IssueJWT_FullMethodName: rpc.AnyNode()}
}

// IssueJWT implements writ.ca.v1.JWTAuthority.
func (j *jwtServer) IssueJWT(ctx context.Context, req *capb.IssueJWTRequest) (*capb.IssueJWTResponse, error) {
	a, begin := j.s.a, j.s.a.now()
	id, token, err := j.issue(ctx, req)
	a.metrics.answered(kindJWT, begin, a.now(), err)
	attrs := []slog.Attr{slog.String("kind", kindJWT), slog.String("requester", rpc.CallerFrom(ctx).ID.String()), slog.String("spiffe_id", id.String())}
	if err != nil {
		a.refusals.note(kindJWT, rpc.CallerFrom(ctx).ID.String(), id.String(), err)
		a.log.LogAttrs(ctx, slog.LevelWarn, "token refused", append(attrs, slog.String("result", string(reasonOf(err))), slog.Any("error", err))...)
		return nil, err
	}
	// Never the token itself: whoever reads it has the identity.
	a.log.LogAttrs(ctx, slog.LevelDebug, "token issued", append(attrs, slog.Any("audiences", req.GetAudiences()), slog.Time("expiry", token.Expiry))...)
	return &capb.IssueJWTResponse{Token: token.Compact, IssuedAt: timestamppb.New(token.IssuedAt), ExpiresAt: timestamppb.New(token.Expiry)}, nil
}

// issue checks that the caller may have the token, signs it and writes it down.
// Errors are refusals.
func (j *jwtServer) issue(ctx context.Context, req *capb.IssueJWTRequest) (spiffeid.ID, jwtsvid.Token, error) {
	if err := j.s.fresh(ctx); err != nil {
		return spiffeid.ID{}, jwtsvid.Token{}, err
	}
	id, err := parseID(req.GetSpiffeId())
	if err != nil {
		return spiffeid.ID{}, jwtsvid.Token{}, err
	}
	audiences, err := audience.Check(req.GetAudiences())
	if err != nil {
		return id, jwtsvid.Token{}, refuse(invalid, "%v", err)
	}
	wanted, err := wantedTTL(req.GetTtl())
	if err != nil {
		return id, jwtsvid.Token{}, err
	}
	if err := j.s.placedOn(ctx, id); err != nil {
		return id, jwtsvid.Token{}, err
	}
	a := j.s.a
	if err := a.revocations.issuable(id.String()); err != nil {
		return id, jwtsvid.Token{}, err
	}
	token, err := a.jwt.Sign(id, audiences, a.life.jwtFor(wanted), a.now())
	if err != nil {
		return id, token, refuse(internal, "the token could not be signed; see the authority's log").because(err)
	}
	if set, _ := a.keys.current(); !bytes.Contains(set.jwks, []byte(token.KeyID)) {
		return id, token, refuse(unavailable, "the key of JWT-SVIDs is not in the bundle yet; ask again")
	}
	_, err = a.store.Commit(ctx, ledger.Change{Entry: ledger.Entry{
		Kind: ledger.IssuedJWT, Time: token.IssuedAt, Actor: rpc.CallerFrom(ctx).ID.String(), Request: kindJWT, Subject: id.String(),
		Authority: token.KeyID, NotAfter: token.Expiry, Detail: map[string]string{"audiences": strings.Join(audiences, " ")},
	}})
	if err != nil {
		return id, token, recording(err)
	}
	return id, token, nil
}

// jwtFor gives the life of a token of which a life is wanted; zero is the default.
func (l lifetimes) jwtFor(wanted time.Duration) time.Duration {
	if wanted == 0 {
		return l.jwt
	}
	return min(max(wanted, minJWTTTL), l.jwtMax)
}
