package attest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"

	"github.com/writ-mesh/writ/nodeagent/statefile"
)

const (
	identityFile  = "identities"
	identityMagic = "WRITIDS1"
	// identityLimit bounds the file of identities, in bytes: 100,000 registrations
	// with facts of usual length are a third of it.
	identityLimit = 64 << 20
	// saveDelay gathers changes before the file is written.
	saveDelay = time.Second
)

// Apply takes registrations of identities from the authority: changes, or with
// Full the beginning of a full list that ends with the update that has Complete.
// What a full list does not name is dropped at its end and not before. One that
// this agent cannot use, because it has a fact of a kind that is not known here,
// is left out and named in the error; the others count.
func (a *Attestor) Apply(_ context.Context, u *capb.RegistrationUpdate) error {
	var errs []error
	a.mu.Lock()
	defer a.mu.Unlock()
	if u.GetFull() {
		a.index.listing = make(map[string]bool)
	}
	for _, r := range u.GetPut() {
		if err := a.put(r); err != nil {
			errs = append(errs, err)
		}
	}
	for _, id := range u.GetDelete() {
		a.index.remove(id)
	}
	if u.GetComplete() {
		a.index.sweep()
		a.notify()
		a.saveIdentitiesSoon()
	}
	return errors.Join(errs...)
}

func (a *Attestor) put(r *capb.Registration) error {
	id, err := spiffeid.FromString(r.GetSpiffeId())
	if err != nil {
		return fmt.Errorf("registration %s: %w", r.GetId(), err)
	}
	if !id.MemberOf(a.cfg.TrustDomain) || id.Path() == "/writ" || strings.HasPrefix(id.Path(), "/writ/") {
		return fmt.Errorf("registration %s: %s is no workload identity of trust domain %s", r.GetId(), id, a.cfg.TrustDomain)
	}
	return a.index.put(Registration{ID: r.GetId(), SPIFFEID: id, Facts: r.GetFacts()})
}

// Digest identifies the registrations that the attestor has: the SHA-256 of their
// ids in order, each with a line feed. The authority sends nothing to who has
// all.
func (a *Attestor) Digest() []byte {
	a.mu.Lock()
	ids := slices.Sorted(maps.Keys(a.index.byID))
	a.mu.Unlock()
	h := sha256.New()
	for _, id := range ids {
		_, _ = h.Write([]byte(id + "\n"))
	}
	return h.Sum(nil)
}

// Serves tells whether proxyID is that of a registered workload.
func (a *Attestor) Serves(proxyID string) bool {
	id, err := spiffeid.FromString(proxyID)
	if err != nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.index.ids[id] > 0
}

// saveIdentitiesSoon has the file written once for all changes of a while. It
// needs a.mu.
func (a *Attestor) saveIdentitiesSoon() {
	if a.saving || a.closed {
		return
	}
	a.saving = true
	a.wg.Go(func() {
		select {
		case <-time.After(saveDelay):
		case <-a.ctx.Done():
		}
		a.saveIdentities()
	})
}

func (a *Attestor) saveIdentities() {
	a.saveMu.Lock()
	defer a.saveMu.Unlock()
	stored := new(capb.RegistrationUpdate)
	a.mu.Lock()
	a.saving = false
	for _, e := range a.index.byID {
		r := a.index.registration(e)
		stored.Put = append(stored.Put, &capb.Registration{Id: r.ID, SpiffeId: r.SPIFFEID.String(), Facts: r.Facts})
	}
	a.mu.Unlock()
	data, err := proto.Marshal(stored)
	if err == nil {
		err = statefile.Write(a.path(identityFile), identityMagic, data)
	}
	if err != nil {
		a.cfg.Log.WarnContext(a.ctx, "identities are not kept for a restart", slog.Any("error", err))
	}
}

func (a *Attestor) loadIdentities() error {
	data, err := statefile.Read(a.path(identityFile), identityMagic, identityLimit)
	if err != nil {
		return err
	}
	stored := new(capb.RegistrationUpdate)
	if err := proto.Unmarshal(data, stored); err != nil {
		return fmt.Errorf("stored identities: %w", err)
	}
	for _, r := range stored.GetPut() {
		if perr := a.put(r); perr != nil {
			err = errors.Join(err, perr)
		}
	}
	return err
}
