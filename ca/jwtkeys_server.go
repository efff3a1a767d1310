package ca

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/ca/ledger"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// jwtKeysServer implements writ.ca.v1.JWTKeys.
type jwtKeysServer struct {
	capb.UnimplementedJWTKeysServer

	a *Authority
}

// ListJWTKeys implements writ.ca.v1.JWTKeys.
func (s *jwtKeysServer) ListJWTKeys(ctx context.Context, _ *capb.ListJWTKeysRequest) (*capb.ListJWTKeysResponse, error) {
	keys, err := s.keys(ctx)
	(&admin{a: s.a}).audit(ctx, "ListJWTKeys", err)
	if err != nil {
		return nil, reading(ctx, err)
	}
	return &capb.ListJWTKeysResponse{Keys: keys}, nil
}

// keys are this authority's, and then those of others over the same ledger.
func (s *jwtKeysServer) keys(ctx context.Context) (out []*capb.JWTKey, err error) {
	set, _ := s.a.jwt.Current()
	for _, k := range set.Keys {
		out = append(out, &capb.JWTKey{Kid: k.ID, Active: k.ID == set.Active, Until: stamp(k.Until)})
	}
	if !s.a.keys.shared {
		return out, nil
	}
	doc, _, err := s.a.keys.load(ctx)
	for _, k := range doc.Keys {
		if !slices.ContainsFunc(set.Keys, func(o jwtsvid.Published) bool { return o.ID == k.ID }) {
			out = append(out, &capb.JWTKey{Kid: k.ID, Elsewhere: true, Until: stamp(k.Until)})
		}
	}
	return out, err
}

// DropJWTKey implements writ.ca.v1.JWTKeys.
func (s *jwtKeysServer) DropJWTKey(ctx context.Context, req *capb.DropJWTKeyRequest) (*capb.DropJWTKeyResponse, error) {
	err := s.drop(ctx, req.GetKid())
	(&admin{a: s.a}).audit(ctx, "DropJWTKey", err, slog.String("kid", req.GetKid()))
	if err != nil {
		return nil, err
	}
	set, _ := s.a.jwt.Current()
	return &capb.DropJWTKeyResponse{Active: set.Active}, nil
}

func (s *jwtKeysServer) drop(ctx context.Context, kid string) error {
	keys, err := s.keys(ctx)
	if err != nil {
		return reading(ctx, err)
	}
	at := slices.IndexFunc(keys, func(k *capb.JWTKey) bool { return k.GetKid() == kid })
	switch {
	case at < 0:
		return refuse(invalid, "there is no key %q; see writ certs jwt-keys", kid)
	case keys[at].GetElsewhere():
		return refuse(unfit, "the key %s is of another authority over the same ledger; drop it there", kid)
	}
	_, err = s.a.store.Commit(ctx, ledger.Change{Entry: ledger.Entry{
		Kind: ledger.Rotated, Time: s.a.now().UTC(), Actor: administrator(ctx), Subject: kid, Detail: map[string]string{"step": "jwt key dropped"},
	}})
	if err != nil {
		return recording(err)
	}
	if err := s.a.jwt.Drop(ctx, kid, s.a.now()); err != nil && !errors.Is(err, jwtsvid.ErrNoKey) { // nobody else drops the same key meanwhile, or is welcome to
		return refuse(unavailable, "the key %s could not be dropped; see the authority's log", kid).because(err)
	}
	if err := s.a.keys.publish(ctx); err != nil {
		return refuse(unavailable, "the key %s is dropped, and others are not told yet; that is tried again", kid).because(err)
	}
	return nil
}
