package ca

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/revocation"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// revocationsServer implements writ.ca.v1.Revocations.
type revocationsServer struct {
	capb.UnimplementedRevocationsServer

	a *Authority
}

// reasonText is a reason as in the command line: key-compromise.
func reasonText(r capb.RevocationReason) string {
	text := strings.TrimPrefix(r.String(), "REVOCATION_REASON_")
	return strings.ReplaceAll(strings.ToLower(text), "_", "-")
}

// Revoke implements writ.ca.v1.Revocations.
func (s *revocationsServer) Revoke(ctx context.Context, req *capb.RevokeRequest) (*capb.RevokeResponse, error) {
	e, resp, err := s.revoke(ctx, req)
	s.audit(ctx, "Revoke", e, err)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *revocationsServer) revoke(ctx context.Context, req *capb.RevokeRequest) (revocation.Entry, *capb.RevokeResponse, error) {
	e, err := s.subject(ctx, req.GetSerial(), req.GetSpiffeId())
	if err != nil {
		return e, nil, err
	}
	e.Reason, e.Time, e.Actor = int(req.GetReason()), s.a.now().UTC(), administrator(ctx)
	return s.enter(ctx, e)
}

// enter writes a revocation down and waits until it is in force here.
func (s *revocationsServer) enter(ctx context.Context, e revocation.Entry) (revocation.Entry, *capb.RevokeResponse, error) {
	value, err := e.Marshal()
	if err != nil {
		return e, nil, refuse(invalid, "%v", err)
	}
	c := s.change(ledger.Revoked, e, revocation.Entry{})
	c.If[e.Key()], c.Put[e.Key()] = 0, value
	version, err := s.a.store.Commit(ctx, c)
	if errors.Is(err, ledger.ErrConflict) {
		doc, old, err := s.known(ctx, e.Key())
		if err != nil {
			return e, nil, err
		}
		s.a.revocations.reached(ctx, doc.Version)
		return old, &capb.RevokeResponse{Revocation: entryProto(old), Sequence: doc.Version, Already: true}, nil
	}
	if err != nil {
		return e, nil, revoking(err)
	}
	e.Sequence = version
	s.a.revocations.reached(ctx, version)
	return e, &capb.RevokeResponse{Revocation: entryProto(e), Sequence: version}, nil
}

// maxPruned bounds how many expired revocations go with one change.
const maxPruned = 100

// change is the frame of a change of the list. Revocations of certificates that have
// expired go along: the log has them.
func (s *revocationsServer) change(kind ledger.Kind, e revocation.Entry, old revocation.Entry) ledger.Change {
	now := s.a.now().UTC()
	c := ledger.Change{
		If:  map[string]uint64{},
		Put: map[string][]byte{revocation.NumberKey: []byte(now.Format("2006-01-02T15:04:05.000000000Z"))},
		Entry: ledger.Entry{
			Kind: kind, Time: now, Actor: e.Actor, Subject: subjectOf(e), Serial: e.Serial, Authority: e.Authority, SHA256: e.SHA256, NotAfter: e.NotAfter,
			Detail: map[string]string{"reason": reasonText(capb.RevocationReason(e.Reason))},
		},
	}
	for i, gone := range s.a.revocations.current.Load().list.Expired(now) {
		if i == maxPruned {
			break
		}
		if gone.Key() != e.Key() && gone.Key() != old.Key() {
			c.Delete = append(c.Delete, gone.Key())
		}
	}
	return c
}

// subjectOf is what the log has a revocation under.
func subjectOf(e revocation.Entry) string {
	if e.OfAuthority() {
		return e.Authority
	}
	return e.SPIFFEID
}

// subject finds out what is to be revoked.
func (s *revocationsServer) subject(ctx context.Context, serial, id string) (revocation.Entry, error) {
	if serial == "" {
		parsed, err := parseID(id)
		if err != nil {
			return revocation.Entry{SPIFFEID: id}, err
		}
		e := revocation.Entry{SPIFFEID: parsed.String()}
		if !parsed.MemberOf(s.a.td) {
			return e, refuse(invalid, "%s is not in the trust domain %s", parsed, s.a.td.Name())
		}
		if s.own(parsed.String()) {
			return e, refuse(invalid, "the authority's own identity cannot be revoked, since nothing could be said to anybody afterwards; if its key is known to others, rotate the root")
		}
		return e, nil
	}
	serial, err := revocation.Serial(serial)
	if err != nil {
		return revocation.Entry{}, refuse(invalid, "%v", err)
	}
	e := revocation.Entry{Serial: serial}
	found, err := s.a.certificate(ctx, serial)
	if err != nil {
		return e, reading(ctx, err)
	}
	switch {
	case found.Serial == "":
		return e, refuse(invalid, "the ledger has no certificate %s; see writ certs ls", serial)
	case s.own(found.Subject):
		return e, refuse(invalid, "the certificate %s is the authority's own, with a key that is in memory only; restart the authority, which makes another", serial)
	case !s.a.now().Before(found.NotAfter):
		return e, refuse(unfit, "the certificate %s of %s expired at %s; nobody takes it any more", serial, found.Subject, found.NotAfter.UTC().Format("2006-01-02T15:04:05Z"))
	}
	e.SPIFFEID, e.SHA256, e.Authority, e.NotAfter = found.Subject, found.SHA256, found.Authority, found.NotAfter.UTC()
	return e, nil
}

// own tells whether a SPIFFE ID is the authority's.
func (s *revocationsServer) own(id string) bool {
	own, err := identity.Service(s.a.td, identity.CA)
	return err == nil && own.String() == id
}

// certificate finds a certificate by its serial number; the zero Entry says that
// there is none.
func (a *Authority) certificate(ctx context.Context, serial string) (found ledger.Entry, err error) {
	issued, number := []byte(`"kind":"`+string(ledger.Issued)+`"`), []byte(`"`+serial+`"`)
	err = a.store.Each(ctx, 0, func(r ledger.Record) error {
		if !bytes.Contains(r.Leaf, issued) || !bytes.Contains(r.Leaf, number) {
			return nil
		}
		e, err := r.Entry()
		if err != nil {
			return err
		}
		if e.Kind == ledger.Issued && e.Serial == serial {
			found = e
		}
		return nil
	})
	return found, err
}

// known reads the document of a revocation.
func (s *revocationsServer) known(ctx context.Context, key string) (ledger.Document, revocation.Entry, error) {
	doc, err := s.a.store.Get(ctx, key)
	switch {
	case errors.Is(err, ledger.ErrNoDocument):
		return doc, revocation.Entry{}, refuse(unfit, "it is not revoked; see writ certs revocations")
	case err != nil:
		return doc, revocation.Entry{}, revoking(err)
	}
	e, err := revocation.Unmarshal(key, doc.Version, doc.Value)
	if err != nil {
		return doc, e, refuse(internal, "%v", err)
	}
	return doc, e, nil
}

// Unrevoke implements writ.ca.v1.Revocations.
func (s *revocationsServer) Unrevoke(ctx context.Context, req *capb.UnrevokeRequest) (*capb.UnrevokeResponse, error) {
	e, resp, err := s.unrevoke(ctx, req)
	s.audit(ctx, "Unrevoke", e, err)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *revocationsServer) unrevoke(ctx context.Context, req *capb.UnrevokeRequest) (revocation.Entry, *capb.UnrevokeResponse, error) {
	var key string
	if text := req.GetSerial(); text != "" {
		serial, err := revocation.Serial(text)
		if err != nil {
			return revocation.Entry{}, nil, refuse(invalid, "%v", err)
		}
		key = revocation.CertificateKey(serial)
	} else {
		id, err := parseID(req.GetSpiffeId())
		if err != nil {
			return revocation.Entry{}, nil, err
		}
		key = revocation.IdentityKey(id.String())
	}
	doc, e, err := s.known(ctx, key)
	if err != nil {
		return e, nil, err
	}
	now := e
	now.Actor = administrator(ctx)
	c := s.change(ledger.Unrevoked, now, e)
	c.If[key] = doc.Version
	c.Delete = append(c.Delete, key)
	version, err := s.a.store.Commit(ctx, c)
	if err != nil {
		return e, nil, revoking(err)
	}
	s.a.revocations.reached(ctx, version)
	return e, &capb.UnrevokeResponse{Revocation: entryProto(e), Sequence: version}, nil
}

// revoking makes a refusal of an error of the ledger.
func revoking(err error) *refusal {
	if errors.Is(err, ledger.ErrConflict) || errors.Is(err, ledger.ErrUnavailable) {
		return refuse(unavailable, "the list of revocations cannot be changed at the moment; nothing was changed, try again").because(err)
	}
	return recording(err)
}

// ListRevocations implements writ.ca.v1.Revocations.
func (s *revocationsServer) ListRevocations(ctx context.Context, _ *capb.ListRevocationsRequest) (*capb.RevocationList, error) {
	(&admin{a: s.a}).audit(ctx, "ListRevocations", nil)
	return s.a.revocations.current.Load().served, nil
}

func (s *revocationsServer) audit(ctx context.Context, method string, e revocation.Entry, err error) {
	(&admin{a: s.a}).audit(ctx, method, err, slog.String("spiffe_id", e.SPIFFEID), slog.String("serial", e.Serial),
		slog.String("reason", reasonText(capb.RevocationReason(e.Reason))))
}

// revocationFeed implements writ.ca.v1.RevocationFeed.
type revocationFeed struct {
	capb.UnimplementedRevocationFeedServer

	s *server
}

func (f *revocationFeed) methods() rpc.Methods {
	own := rpc.Or(rpc.AnyNode(), rpc.AnyService(services()...))
	return rpc.Methods{
		capb.RevocationFeed_WatchRevocations_FullMethodName:  own,
		capb.RevocationFeed_ReturnRevocations_FullMethodName: own,
	}
}

// WatchRevocations implements writ.ca.v1.RevocationFeed. A watcher who is revoked
// himself is told that, so that he joins again, and nothing more.
func (f *revocationFeed) WatchRevocations(_ *capb.WatchRevocationsRequest, stream grpc.ServerStreamingServer[capb.RevocationList]) error {
	ctx := stream.Context()
	for {
		c := f.s.a.revocations.current.Load()
		refused := f.s.unrevoked(ctx)
		if err := stream.Send(c.served); err != nil || refused != nil {
			return cmp.Or(refused, err)
		}
		select {
		case <-c.replaced:
		case <-ctx.Done():
			return ctx.Err()
		case <-f.s.stopping:
			return refuse(unavailable, "the authority is stopping; connect again")
		}
	}
}
