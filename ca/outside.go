package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/writ-mesh/writ/ca/plugged"
	"github.com/writ-mesh/writ/ca/profile"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
	"github.com/writ-mesh/writ/ca/signer"
)

// source is where an authority that is not our own root comes from.
type source interface {
	// load gives the set of now, for the start.
	load(ctx context.Context) (plugged.Set, error)
	// run has each newer set taken until ctx ends.
	run(ctx context.Context, take func(context.Context, plugged.Set) error) error
}

// outside is an authority that somebody else made, as it signs here.
type outside struct {
	set    plugged.Set
	signer *signer.Signer
	// root and issuer are key ids.
	root, issuer string
}

func newOutside(ctx context.Context, set plugged.Set) (*outside, error) {
	sign, err := signer.New(ctx, set.Chain, set.Key)
	if err != nil {
		return nil, err
	}
	return &outside{set: set, signer: sign, root: root.KeyID(set.Root), issuer: root.KeyID(set.Issuer())}, nil
}

// authority is its root as the state has it.
func (o *outside) authority() roots.Authority {
	return roots.Authority{KeyID: o.root, Certificate: o.set.Root.Raw}
}

// noted is a state in which it signs in the name of its root.
func (o *outside) noted(s roots.State) roots.State {
	var extra [][]byte
	for _, cert := range o.set.Roots {
		extra = append(extra, cert.Raw)
	}
	return s.Signs(o.root, o.issuer, extra)
}

// outsideBox holds the authority from outside that was taken last, if there is one.
type outsideBox struct{ atomic.Pointer[outside] }

// signsFor tells whether it is under the root with that key id.
func (b *outsideBox) signsFor(keyID string) bool {
	o := b.Load()
	return o != nil && o.root == keyID
}

// refusesRotation: a root that somebody else made cannot be made anew here.
func (b *outsideBox) refusesRotation() error {
	if b.Load() == nil {
		return nil
	}
	return fmt.Errorf("%w: the root is not the authority's own; give it a set under the new root where it has its set from (authority.files, or the upstream), and the rotation begins by itself", roots.ErrRefused)
}

// openOutside gives the trust at start of an authority with a set from outside.
func (k *keeper) openOutside(ctx context.Context, o *outside, s roots.State, inUse bool) (*trust, error) {
	if k.version == 0 {
		return k.firstOutside(ctx, o, inUse)
	}
	if s.Active == o.root {
		return k.resume(ctx, o, o.noted(s), s)
	}
	active, _ := s.Authority(s.Active)
	cert, err := x509.ParseCertificate(active.Certificate)
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", s.Active, err)
	}
	sign, err := k.loadSigner(ctx, cert)
	if err == nil {
		// It signs until everybody trusts the root of the set: see take.
		return newTrust(k.spec.TrustDomain, s, sign)
	}
	next, trusted, goErr := k.goOver(o, s)
	if goErr != nil {
		return nil, goErr
	}
	if !trusted {
		return nil, fmt.Errorf("the set is under the root %s, which nobody trusts yet, and the key of %s, which everybody trusts, is gone (%w); start with the set from before and replace it while the authority runs, or add the new root to %s first",
			o.root, s.Active, err, plugged.RootFile)
	}
	k.log.WarnContext(ctx, "the key that signed before is gone, so the root of the new set takes over without waiting for anybody", slog.String("old_root", s.Active), slog.String("new_root", o.root))
	return k.resume(ctx, o, o.noted(next), s)
}

// goOver is the state in which a root that is in the bundle takes over at once.
func (k *keeper) goOver(o *outside, s roots.State) (next roots.State, trusted bool, err error) {
	if !slices.ContainsFunc(s.Trusted(), func(der []byte) bool { return bytes.Equal(der, o.set.Root.Raw) }) {
		return s, false, nil
	}
	if s.Rotation != nil && s.Rotation.New != o.root {
		return s, false, nil
	}
	if s.Rotation == nil {
		if s, err = s.Begin(o.authority(), selfActor, roots.How{}, k.now()); err != nil {
			return s, false, err
		}
	}
	next, err = s.Advance(nil, k.now())
	return next, true, err
}

// resume gives the trust of a state in which a set signs, and makes the state
// durable if it is another than before.
func (k *keeper) resume(ctx context.Context, o *outside, s, before roots.State) (*trust, error) {
	if s.Sequence != before.Sequence || s.RootOf(o.issuer) != before.RootOf(o.issuer) {
		if err := k.saveState(ctx, s, event{actor: selfActor, step: "issuer", subject: o.issuer}); err != nil {
			return nil, err
		}
	}
	return newTrust(k.spec.TrustDomain, s, o.signer)
}

// firstOutside begins with a set; or with the own root that an earlier version made,
// from which take then goes over to the set.
func (k *keeper) firstOutside(ctx context.Context, o *outside, inUse bool) (*trust, error) {
	if _, err := os.Stat(filepath.Join(k.dir, root.CertFile)); err == nil {
		return k.first(ctx, inUse)
	}
	s := o.noted(roots.First(o.authority()))
	s.Sequence = 1
	if err := k.saveState(ctx, s, event{actor: selfActor, step: "first", subject: s.Active}); err != nil {
		return nil, err
	}
	return newTrust(k.spec.TrustDomain, s, o.signer)
}

// take puts a set into force: at once if it is under the root that signs, else by a
// rotation to its root. A set that cannot be taken changes nothing.
func (k *keeper) take(ctx context.Context, set plugged.Set) error {
	o, err := newOutside(ctx, set)
	if err != nil {
		return err
	}
	if k.inForce(o) {
		return nil
	}
	before := k.outside.Load()
	k.outside.Store(o)
	e := event{actor: selfActor, step: "issuer", subject: o.issuer}
	err = k.change(ctx, &e, func(s roots.State) (roots.State, error) {
		s, err := k.toward(o, s, &e)
		return o.noted(s), err
	})
	if err != nil {
		k.outside.CompareAndSwap(o, before)
	}
	return err
}

// inForce tells whether a set is all that could be had of it: it signs, or its root
// is on its way.
func (k *keeper) inForce(o *outside) bool {
	s := k.a.trusted().state
	if cur := k.outside.Load(); cur == nil || !cur.set.Equal(o.set) {
		return false
	}
	on := s.Active == o.root && (s.Rotation == nil || s.Rotation.New == o.root) || s.Rotation != nil && s.Rotation.New == o.root
	noted := o.noted(s)
	return on && noted.Sequence == s.Sequence && (o.root == o.issuer || s.RootOf(o.issuer) == o.root)
}

// toward is the step from a state towards the root of a set.
func (k *keeper) toward(o *outside, s roots.State, e *event) (roots.State, error) {
	r := s.Rotation
	switch {
	case r == nil && s.Active == o.root, r != nil && r.New == o.root:
		return s, nil
	case r == nil:
		e.step, e.subject = "prepare", o.root
		return s.Begin(o.authority(), e.actor, roots.How{}, k.now())
	case r.Old == o.root:
		e.step, e.subject = "abort", r.New
		return s.Abort(k.now())
	}
	return s, fmt.Errorf("%w: the set is under the root %s, while the rotation from %s to %s is under way; it is taken when that has ended", roots.ErrRefused, o.root, r.Old, r.New)
}

// outsideSigner gives who signs for a root whose key is not in the state directory;
// nil if it may be there.
func (k *keeper) outsideSigner(ctx context.Context, cert *x509.Certificate) (*signer.Signer, error) {
	if o := k.outside.Load(); o != nil && o.set.Root.Equal(cert) {
		return o.signer, nil
	}
	return k.kmsSigner(ctx, cert)
}

// byRoot has the issuers of facts replaced by the roots that they are under.
func (k *keeper) byRoot(f roots.Facts) {
	s := k.a.trusted().state
	for i := range f.Leaves {
		f.Leaves[i].Issuer = s.RootOf(f.Leaves[i].Issuer)
	}
	for i, r := range f.Reports {
		of := make([]string, len(r.Authorities))
		for j, issuer := range r.Authorities {
			of[j] = s.RootOf(issuer)
		}
		f.Reports[i].Authorities = of
	}
}

// maxPast bounds how many are remembered who signed before: what they signed is
// handed out within seconds.
const maxPast = 8

// follows takes over from the trust before who signed, as far as that is trusted.
func (t *trust) follows(old *trust) {
	for _, s := range append(slices.Clone(old.past), old.signer) {
		if s != t.signer && t.knows(root.KeyID(s.Issuer())) {
			t.past = append(t.past, s)
		}
	}
	t.past = t.past[max(0, len(t.past)-maxPast):]
}

// chain gives a certificate with those that a peer needs between it and the root.
func (t *trust) chain(cert *x509.Certificate) []*x509.Certificate {
	for _, s := range append([]*signer.Signer{t.signer}, t.past...) {
		if is := s.Issuer(); bytes.Equal(is.RawSubject, cert.RawIssuer) && bytes.Equal(is.SubjectKeyId, cert.AuthorityKeyId) {
			return append([]*x509.Certificate{cert}, s.Intermediates()...)
		}
	}
	return append([]*x509.Certificate{cert}, t.signer.Intermediates()...)
}

// checkTime says whether the authority and all above it are valid now.
func (t *trust) checkTime(now time.Time) error {
	if err := profile.CheckTime(t.signer.Issuer(), now); err != nil {
		return err
	}
	if !now.Before(t.end) {
		return fmt.Errorf("an authority above expired at %s, this machine's clock says %s", t.end.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// issuers are those who sign lists of what is revoked: whoever signs, or signed and
// may have certificates that live. Of one whose key is gone there is none.
func (r *revocations) issuers(ctx context.Context, t *trust) ([]*signer.Signer, error) {
	kept := map[string]*signer.Signer{}
	var out []*signer.Signer
	for _, authority := range t.state.Authorities {
		s, err := r.signerOf(ctx, t, authority.KeyID, authority.Certificate)
		if errors.Is(err, errForeign) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("authority %s: %w", authority.KeyID, err)
		}
		kept[authority.KeyID] = s
		out = append(out, s)
	}
	r.signers = kept
	for _, s := range slices.Backward(t.past) {
		if !slices.ContainsFunc(out, func(o *signer.Signer) bool { return root.KeyID(o.Issuer()) == root.KeyID(s.Issuer()) }) {
			out = append(out, s)
		}
	}
	return out, nil
}

// foreign tells whether there is no own root of before here.
func (k *keeper) foreign() bool {
	_, err := os.Stat(filepath.Join(k.dir, root.CertFile))
	return k.outside.Load() != nil && err != nil
}

// errForeign: a root is trusted, and nothing can be signed in its name here.
var errForeign = errors.New("its key is not here")
