package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/revocation"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// minKeyID is how many digits of a key id are enough to mean a root.
	minKeyID = 8
	// dropWait is how long it is waited for that a root is out of the bundle, and
	// behindWait for that everybody has the bundle without it. Connections that are open
	// are cut off after that, so that new ones find the root gone.
	dropWait   = 20 * time.Second
	behindWait = 2 * time.Second
	// lookAgain is how often it is looked who has the bundle.
	lookAgain = 20 * time.Millisecond
	// maxBehind bounds how many are named who have not.
	maxBehind = 20
)

// RevokeRoot implements writ.ca.v1.Roots.
func (s *rootsServer) RevokeRoot(ctx context.Context, req *capb.RevokeRootRequest) (*capb.RevokeRootResponse, error) {
	resp, err := s.revoke(ctx, req)
	s.audit(ctx, "RevokeRoot", err, slog.String("root", req.GetKeyId()), slog.String("reason", reasonText(req.GetReason())))
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *rootsServer) revoke(ctx context.Context, req *capb.RevokeRootRequest) (*capb.RevokeRootResponse, error) {
	if !revocation.IsReason(int(req.GetReason())) {
		return nil, refuse(invalid, "%d is no reason", req.GetReason())
	}
	keyID, err := s.meant(ctx, strings.ToLower(req.GetKeyId()))
	if err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, dropWait)
	defer cancel()
	if err := s.a.keeper.drop(wait, administrator(ctx), keyID, req.GetReplicas()); err != nil {
		_, err := s.after(ctx, err)
		return nil, err
	}
	resp := &capb.RevokeRootResponse{Active: s.a.trusted().state.Active, Behind: s.a.keeper.behind(ctx)}
	return resp, s.record(ctx, keyID, req.GetReason(), resp)
}

// record makes the revocation durable, by which connections that are open are cut off.
func (s *rootsServer) record(ctx context.Context, keyID string, reason capb.RevocationReason, resp *capb.RevokeRootResponse) error {
	now := s.a.now().UTC()
	e := revocation.Entry{Authority: keyID, Reason: int(reason), Time: now, Actor: administrator(ctx), NotAfter: now.Add(s.a.life.max)}
	value, err := e.Marshal()
	if err != nil {
		return refuse(invalid, "%v", err)
	}
	rs := &revocationsServer{a: s.a}
	c := rs.change(ledger.Revoked, e, revocation.Entry{})
	c.If[e.Key()], c.Put[e.Key()] = 0, value
	version, err := s.a.store.Commit(ctx, c)
	if errors.Is(err, ledger.ErrConflict) {
		doc, old, err := rs.known(ctx, e.Key())
		if err != nil {
			return err
		}
		e, version, resp.Already = old, doc.Version, true
	} else if err != nil {
		return revoking(err)
	}
	e.Sequence = version
	s.a.revocations.reached(ctx, version)
	resp.Revocation, resp.Sequence = entryProto(e), version
	return nil
}

// meant finds out which root a key id, or the beginning of one, is of.
func (s *rootsServer) meant(ctx context.Context, text string) (string, error) {
	t := s.a.trusted()
	var known []string
	for _, a := range t.state.Authorities {
		known = append(known, a.KeyID)
	}
	for _, cert := range t.bundle.X509Authorities() {
		known = append(known, root.KeyID(cert))
	}
	if last := t.state.Last; last != nil {
		known = append(known, last.Old, last.New)
	}
	// One that is out of the bundle may have connections that are open.
	err := s.a.eachCertificate(ctx, "", func(e ledger.Entry) error {
		if e.Authority != "" && known[len(known)-1] != e.Authority {
			known = append(known, e.Authority)
		}
		return nil
	})
	if err != nil {
		return "", reading(ctx, err)
	}
	slices.Sort(known)
	known = slices.DeleteFunc(slices.Compact(known), func(id string) bool { return id != text && (len(text) < minKeyID || !strings.HasPrefix(id, text)) })
	switch {
	case len(known) == 0:
		return "", refuse(invalid, "no authority of this mesh has the key id %q, or begins with it (%d digits at least); see writ roots", text, minKeyID)
	case len(known) > 1:
		return "", refuse(invalid, "the key ids of several authorities begin with %q: %s", text, strings.Join(known, ", "))
	}
	return known[0], s.droppable(t, known[0])
}

// droppable refuses what somebody else has to revoke.
func (s *rootsServer) droppable(t *trust, keyID string) error {
	if above := t.state.RootOf(keyID); above != keyID {
		return refuse(unfit, "%s is an authority under the root %s, which is not this mesh's own: nobody here can make others refuse what is forged with its key. "+
			"Have the root's owner give this authority a set under another root, and revoke the root %s when that has taken over", keyID, above, above)
	}
	if _, own := t.state.Authority(keyID); !own && slices.ContainsFunc(t.bundle.X509Authorities(), func(c *x509.Certificate) bool { return root.KeyID(c) == keyID }) {
		return refuse(unfit, "the root %s is trusted because authority.files lists it; take it out of root-cert.pem first", keyID)
	}
	return nil
}

// drop has a root out of the bundle, whatever its part in a rotation is, waiting for
// nobody but until ctx ends for the steps themselves. The key of a root that takes its
// place goes to the replicas with those ids, to all if there are none.
func (k *keeper) drop(ctx context.Context, by, keyID string, replicas []string) error {
	if len(replicas) == 0 {
		replicas = nil
	}
	for {
		s := k.a.trusted().state
		if _, there := s.Authority(keyID); !there {
			return nil
		}
		if err := k.dropStep(ctx, by, keyID, s, replicas); err != nil {
			return err
		}
		t := k.a.trusted()
		if _, there := t.state.Authority(keyID); !there {
			return nil
		}
		select {
		case <-t.replaced:
		case <-ctx.Done():
			return fmt.Errorf("%w: the root %s is to be dropped and still there; `writ roots` says what is in the way. Call this again when it is gone", roots.ErrRefused, keyID)
		}
	}
}

// dropStep is what to do next, if anything, with a root that is to go.
func (k *keeper) dropStep(ctx context.Context, by, keyID string, s roots.State, replicas []string) error {
	r := s.Rotation
	switch {
	case r == nil, r.Old == keyID && (!r.Compromised || r.Manual):
		return k.rotateTo(ctx, by, roots.How{Compromised: true}, replicas)
	case r.New == keyID && r.Step == roots.Distributing:
		return k.abort(ctx, by)
	case r.New == keyID && (!r.Force || r.Manual):
		return k.rotateTo(ctx, by, roots.How{Force: true}, replicas) // and then to another
	}
	return nil // it is on its way
}

// behind waits for a moment until every watcher has the bundle of now, and names those
// who have not.
func (k *keeper) behind(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, behindWait)
	defer cancel()
	for {
		late := k.late()
		select {
		case <-ctx.Done():
			return late[:min(len(late), maxBehind)]
		case <-time.After(lookAgain):
		}
		if len(late) == 0 {
			return nil
		}
	}
}

// late are the watchers who have not acknowledged the bundle of now.
func (k *keeper) late() []string {
	sequence := k.a.trusted().state.Sequence
	k.reportsMu.Lock()
	defer k.reportsMu.Unlock()
	var out []string
	for r := range k.reports {
		if k.a.rootsSequence(r.Acknowledged) < sequence {
			out = append(out, r.Holder)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
