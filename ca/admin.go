package ca

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"
	istiopb "istio.io/api/security/v1alpha1"

	"github.com/writ-mesh/writ/ca/jointoken"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// maxTokenTTL bounds how long a join token may be used.
const maxTokenTTL = 24 * time.Hour

// admin implements writ.ca.v1.Admin.
type admin struct {
	capb.UnimplementedAdminServer

	a *Authority
}

// adminMethods says who may call what on the admin socket.
func adminMethods() rpc.Methods {
	return rpc.Methods{
		capb.Admin_CreateJoinToken_FullMethodName:                        rpc.SameUser(),
		capb.Admin_Mint_FullMethodName:                                   rpc.SameUser(),
		capb.Admin_ListCertificates_FullMethodName:                       rpc.SameUser(),
		capb.Admin_GetBundle_FullMethodName:                              rpc.SameUser(),
		istiopb.IstioCertificateService_CreateCertificate_FullMethodName: rpc.SameUser(),
		capb.Ledger_GetCheckpoint_FullMethodName:                         rpc.SameUser(),
		capb.Ledger_ReadEntries_FullMethodName:                           rpc.SameUser(),
		capb.Ledger_ReadDocuments_FullMethodName:                         rpc.SameUser(),
		capb.Witness_ProveContinuation_FullMethodName:                    rpc.SameUser(),
		capb.JWTKeys_ListJWTKeys_FullMethodName:                          rpc.SameUser(),
		capb.JWTKeys_DropJWTKey_FullMethodName:                           rpc.SameUser(),
		capb.Ledger_ProveInclusion_FullMethodName:                        rpc.SameUser(),
		capb.Ledger_ProveConsistency_FullMethodName:                      rpc.SameUser(),
		capb.Revocations_Revoke_FullMethodName:                           rpc.SameUser(),
		capb.Revocations_Unrevoke_FullMethodName:                         rpc.SameUser(),
		capb.Revocations_ListRevocations_FullMethodName:                  rpc.SameUser(),
		capb.Roots_GetRoots_FullMethodName:                               rpc.SameUser(),
		capb.Roots_WatchRoots_FullMethodName:                             rpc.SameUser(),
		capb.Roots_RotateRoot_FullMethodName:                             rpc.SameUser(),
		capb.Roots_AbortRotation_FullMethodName:                          rpc.SameUser(),
		capb.Replicas_ListReplicas_FullMethodName:                        rpc.SameUser(),
		capb.Replicas_AdmitReplica_FullMethodName:                        rpc.SameUser(),
		capb.Replicas_RenewMember_FullMethodName:                         rpc.SameUser(),
		capb.Roots_RevokeRoot_FullMethodName:                             rpc.SameUser(),
		capb.Registrations_PutRegistration_FullMethodName:                rpc.SameUser(),
		capb.Registrations_DeleteRegistration_FullMethodName:             rpc.SameUser(),
		capb.Registrations_ListRegistrations_FullMethodName:              rpc.SameUser(),
	}
}

// administrator names the caller for the ledger.
func administrator(ctx context.Context) string {
	if c := rpc.CallerFrom(ctx); c.Cred != nil {
		return fmt.Sprintf("admin uid=%d", c.Cred.UID)
	}
	return "admin"
}

// audit logs a call of the admin service other than those that issue, which
// Authority.answer logs.
func (s *admin) audit(ctx context.Context, method string, err error, attrs ...slog.Attr) {
	c := rpc.CallerFrom(ctx)
	attrs = append(attrs, slog.String("method", method), slog.String("caller", c.String()))
	if err != nil {
		s.a.log.LogAttrs(ctx, slog.LevelWarn, "admin call refused", append(attrs, slog.Any("error", err))...)
		return
	}
	s.a.log.LogAttrs(ctx, slog.LevelInfo, "admin call", attrs...)
}

// CreateJoinToken implements writ.ca.v1.Admin.
func (s *admin) CreateJoinToken(ctx context.Context, req *capb.CreateJoinTokenRequest) (*capb.CreateJoinTokenResponse, error) {
	resp, id, err := s.createJoinToken(ctx, req)
	s.audit(ctx, "CreateJoinToken", err, slog.String("spiffe_id", req.GetSpiffeId()), slog.String("token_id", id))
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *admin) createJoinToken(ctx context.Context, req *capb.CreateJoinTokenRequest) (*capb.CreateJoinTokenResponse, string, error) {
	id, err := parseID(req.GetSpiffeId())
	if err != nil {
		return nil, "", err
	}
	if err := s.a.joinable(id); err != nil {
		return nil, "", refuse(invalid, "%v", err)
	}
	ttl, err := wantedTTL(req.GetTtl())
	if err != nil {
		return nil, "", err
	}
	if ttl == 0 {
		ttl = s.a.life.token
	}
	if ttl > maxTokenTTL {
		return nil, "", refuse(invalid, "a join token may be used for %s at most", maxTokenTTL)
	}
	token, err := jointoken.New()
	if err != nil {
		return nil, "", refuse(internal, "no token could be made; see the authority's log").because(err)
	}
	now := s.a.now().UTC()
	kept := keptToken{Hash: token.Hash(), SPIFFEID: id.String(), ExpiresAt: now.Add(ttl)}
	c, err := s.a.newToken(ctx, token.ID, kept, now)
	if err != nil {
		return nil, "", err
	}
	c.Entry.Actor = administrator(ctx)
	if _, err := s.a.store.Commit(ctx, c); err != nil {
		return nil, "", recording(err)
	}
	return &capb.CreateJoinTokenResponse{Token: token.Reveal(), ExpiresAt: timestamppb.New(kept.ExpiresAt)}, token.ID, nil
}

// Mint implements writ.ca.v1.Admin.
func (s *admin) Mint(ctx context.Context, req *capb.MintRequest) (*capb.CertificateResponse, error) {
	return s.a.response(s.a.fulfil(ctx, order{kind: kindMint, requester: administrator(ctx)}, func(o *order) (err error) {
		if o.id, err = parseID(req.GetSpiffeId()); err != nil {
			return err
		}
		return o.wanted(req.GetTtl(), req.GetCsr())
	}))
}

// GetBundle implements writ.ca.v1.Admin.
func (s *admin) GetBundle(ctx context.Context, _ *capb.GetBundleRequest) (*capb.Bundle, error) {
	s.audit(ctx, "GetBundle", nil)
	return s.a.bundleProto(s.a.trusted()), nil
}

// ListCertificates implements writ.ca.v1.Admin.
func (s *admin) ListCertificates(req *capb.ListCertificatesRequest, stream grpc.ServerStreamingServer[capb.CertificateRecord]) error {
	now := s.a.now()
	err := s.a.eachCertificate(stream.Context(), req.GetSpiffeId(), func(e ledger.Entry) error {
		if req.GetLive() && !now.Before(e.NotAfter) {
			return nil
		}
		return stream.Send(&capb.CertificateRecord{
			Serial: e.Serial, SpiffeId: e.Subject, Requester: e.Actor,
			NotBefore: timestamppb.New(e.NotBefore), NotAfter: timestamppb.New(e.NotAfter), IssuedAt: timestamppb.New(e.Time), Authority: e.Authority, Facts: e.Facts,
		})
	})
	s.audit(stream.Context(), "ListCertificates", err)
	switch {
	case err == nil:
		return nil
	case stream.Context().Err() != nil:
		return refuse(gone, "the caller went away").because(err)
	}
	return refuse(internal, "the ledger cannot be read; see the authority's log").because(err)
}

// eachCertificate calls f with the certificates that were issued, oldest first; an
// empty id stands for all.
func (a *Authority) eachCertificate(ctx context.Context, id string, f func(ledger.Entry) error) error {
	// Most entries are passed over by a look at their bytes, which is twenty times
	// faster than reading them; JSON leaves a SPIFFE ID as it is.
	issued, subject := []byte(`"kind":"`+string(ledger.Issued)+`"`), []byte(`"`+id+`"`)
	return a.store.Each(ctx, 0, func(r ledger.Record) error {
		if !bytes.Contains(r.Leaf, issued) || id != "" && !bytes.Contains(r.Leaf, subject) {
			return nil
		}
		e, err := r.Entry()
		if err != nil {
			return err
		}
		if e.Kind != ledger.Issued || id != "" && e.Subject != id {
			return nil
		}
		return f(e)
	})
}

// eachEntry calls f with the entries of a kind, oldest first.
func (a *Authority) eachEntry(ctx context.Context, kind ledger.Kind, f func(ledger.Entry)) error {
	is := []byte(`"kind":"` + string(kind) + `"`)
	return a.store.Each(ctx, 0, func(r ledger.Record) error {
		if !bytes.Contains(r.Leaf, is) {
			return nil
		}
		e, err := r.Entry()
		if err == nil && e.Kind == kind {
			f(e)
		}
		return err
	})
}
