package ca

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/revocation"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// revocationsStatement is the kind of the authority's word for a list.
	revocationsStatement = "revocations"
	// maxReturned bounds a list that is given back, in entries, and maxReturnedPart a
	// part of it.
	maxReturned     = 100_000
	maxReturnedPart = 100
)

// stated puts the authority's word to a list of revocations, by which it knows the
// list again when its ledger does not have it any more. A list without is as good for
// everything else.
func (r *revocations) stated(ctx context.Context, list *capb.RevocationList, now time.Time) {
	if t := r.a.lost.last(); !t.IsZero() {
		list.RestoredAt = timestamppb.New(t)
	}
	list.MadeAt = timestamppb.New(now)
	sum, err := sumOf(list.GetRevocations())
	if err == nil {
		list.Statement, err = r.a.statement(revocationsStatement, now.UTC().Format(time.RFC3339Nano), sum)
	}
	if err != nil {
		r.a.log.ErrorContext(ctx, "the list of revocations is not signed; after a restore from a backup nobody can give it back", slog.Any("error", err))
	}
}

// sumOf is over everything that revocations say, in hexadecimal.
func sumOf(list []*capb.Revocation) (string, error) {
	hash := sha256.New()
	enc := json.NewEncoder(hash)
	for _, r := range list {
		err := enc.Encode([]any{
			r.GetSerial(), r.GetSpiffeId(), r.GetSha256(), r.GetAuthority(), int32(r.GetReason()), r.GetActor(), r.GetSequence(),
			r.GetRevokedAt().AsTime(), r.GetNotAfter().AsTime(),
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// ReturnRevocations implements writ.ca.v1.RevocationFeed.
func (f *revocationFeed) ReturnRevocations(stream grpc.ClientStreamingServer[capb.ReturnRevocationsRequest, capb.ReturnRevocationsResponse]) error {
	ctx := stream.Context()
	if err := f.s.unrevoked(ctx); err != nil {
		return err
	}
	var statement string
	var list []*capb.Revocation
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if list == nil {
			statement = req.GetStatement()
		}
		if len(req.GetRevocations()) > maxReturnedPart || len(list)+len(req.GetRevocations()) > maxReturned {
			return refuse(invalid, "at most %d revocations in a message, and %d together", maxReturnedPart, maxReturned)
		}
		list = append(list, req.GetRevocations()...)
	}
	n, err := f.s.a.takeBack(ctx, rpc.CallerFrom(ctx).ID, statement, list)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&capb.ReturnRevocationsResponse{Adopted: n})
}

// takeBack revokes again what a list of a lost time has, and what nobody took back
// since. The list is believed because the authority signed it, whoever has it.
func (a *Authority) takeBack(ctx context.Context, holder spiffeid.ID, statement string, list []*capb.Revocation) (adopted uint32, err error) {
	made, err := a.madeAt(ctx, statement, list)
	if err != nil || !a.lost.has(made) {
		return 0, err
	}
	undone, err := a.unrevokedSince(ctx, made)
	if err != nil {
		return 0, reading(ctx, err)
	}
	now, version := a.now(), uint64(0)
	for _, r := range list {
		e, err := revocationOf(r)
		if err != nil {
			a.log.ErrorContext(ctx, "a revocation that the ledger lost cannot be taken back; revoke it again", slog.String("subject", r.String()), slog.Any("error", err))
			continue
		}
		if undone[e.Key()] || e.Expired(now) {
			continue
		}
		v, err := a.revokeAgain(ctx, e, holder, made)
		if errors.Is(err, ledger.ErrConflict) {
			continue // the backup had it, or another holder brought it
		}
		if err != nil {
			return adopted, revoking(err)
		}
		adopted, version = adopted+1, v
	}
	if adopted > 0 {
		a.revocations.reached(ctx, version)
		a.log.WarnContext(ctx, "revocations that the ledger lost are in force again; somebody kept the list",
			slog.Uint64("revocations", uint64(adopted)), slog.String("from", holder.String()), slog.Time("list_of", made))
	}
	return adopted, nil
}

// verifierPrefix is that of the documents with the public keys of the authorities that
// share a ledger, each of which signs its own lists.
const verifierPrefix = "ledger/verifiers/"

// verifierMade is the kind of the entry about such a key; Subject is the key.
const verifierMade ledger.Kind = "verifier"

// publishVerifier makes this authority's public key known to those over the same
// ledger, which may be given a list back that this one signed. If it cannot, the next
// start does.
func (a *Authority) publishVerifier(ctx context.Context) {
	sum := sha256.Sum256([]byte(a.signer.Verifier))
	key := verifierPrefix + hex.EncodeToString(sum[:])
	_, err := a.store.Get(ctx, key)
	if errors.Is(err, ledger.ErrNoDocument) {
		_, err = a.store.Commit(ctx, ledger.Change{
			Put:   map[string][]byte{key: []byte(a.signer.Verifier)},
			Entry: ledger.Entry{Kind: verifierMade, Time: a.now().UTC(), Actor: selfActor, Subject: a.signer.Verifier},
		})
	}
	if err != nil {
		a.log.WarnContext(ctx, "others over the same ledger do not know this authority's key; after a restore they do not take its lists of revocations back", slog.Any("error", err))
	}
}

// verifiers are the public keys of this authority and of those over the same ledger.
func (a *Authority) verifiers(ctx context.Context) ([]string, error) {
	out := []string{a.signer.Verifier}
	docs, err := a.store.List(ctx, verifierPrefix)
	for _, d := range docs {
		out = append(out, string(d.Value))
	}
	return out, err
}

// madeAt is when this authority, or another one over the same ledger, made a list.
func (a *Authority) madeAt(ctx context.Context, statement string, list []*capb.Revocation) (time.Time, error) {
	if a.signer == nil {
		return time.Time{}, refuse(unfit, "the authority does not know its lists")
	}
	verifiers, err := a.verifiers(ctx)
	if err != nil {
		return time.Time{}, reading(ctx, err)
	}
	lines, err := checkpoint.OpenStatement([]byte(statement), a.signer.Log, revocationsStatement, verifiers...)
	if err != nil {
		return time.Time{}, refuse(invalid, "the list is not the authority's: %v", err)
	}
	sum, err := sumOf(list)
	if err != nil || len(lines) != 2 || lines[1] != sum {
		return time.Time{}, refuse(invalid, "the list is not the one that the authority signed")
	}
	made, err := time.Parse(time.RFC3339Nano, lines[0])
	if err != nil {
		return time.Time{}, refuse(invalid, "the list does not say when it was made")
	}
	return made, nil
}

// unrevokedSince are the keys of what was taken back since a moment, in the ledger.
func (a *Authority) unrevokedSince(ctx context.Context, since time.Time) (map[string]bool, error) {
	out := make(map[string]bool)
	err := a.eachEntry(ctx, ledger.Unrevoked, func(e ledger.Entry) {
		if !e.Time.Before(since) {
			out[revocation.Entry{Serial: e.Serial, SPIFFEID: e.Subject}.Key()] = true
		}
	})
	return out, err
}

func revocationOf(r *capb.Revocation) (revocation.Entry, error) {
	e := revocation.Entry{
		Serial: r.GetSerial(), SPIFFEID: r.GetSpiffeId(), SHA256: r.GetSha256(), Authority: r.GetAuthority(), Reason: int(r.GetReason()),
		Time: r.GetRevokedAt().AsTime(), Actor: r.GetActor(),
	}
	if r.GetNotAfter() != nil {
		e.NotAfter = r.GetNotAfter().AsTime()
	}
	if e.SPIFFEID == "" {
		return e, errors.New("it is of a whole authority, whose root has to be replaced besides: writ roots")
	}
	_, err := e.Marshal()
	return e, err
}

func (a *Authority) revokeAgain(ctx context.Context, e revocation.Entry, holder spiffeid.ID, made time.Time) (uint64, error) {
	value, err := e.Marshal()
	if err != nil {
		return 0, err
	}
	c := (&revocationsServer{a: a}).change(ledger.Revoked, e, revocation.Entry{})
	c.Entry.Actor = holder.String()
	c.Entry.Detail["text"] = "the ledger had lost it, and has it from a list that the authority signed at " + made.UTC().Format(time.RFC3339) + "; revoked by " + e.Actor
	c.If[e.Key()], c.Put[e.Key()] = 0, value
	return a.store.Commit(ctx, c)
}
