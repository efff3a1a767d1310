package attest

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protodelim"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"

	"github.com/writ-mesh/writ/nodeagent/statefile"
)

const (
	identityFile  = "identities"
	identityMagic = "WRITIDS1"
	// identityLimit bounds the file of identities, in bytes, compressed: 100,000
	// registrations with facts of usual length are a tenth of it.
	identityLimit = 64 << 20
	// maxRegistration bounds a registration in it, in bytes; the authority's bound is
	// below it.
	maxRegistration = 64 << 10
	// manyRegistrations are so many that taking and writing them leaves garbage of many
	// MiB behind.
	manyRegistrations = 10_000
	// savePart is how many registrations are copied at once.
	savePart = 500
	// saveDelay gathers changes before the file is written.
	saveDelay = time.Second
)

// Apply takes registrations of identities from the authority: changes, or with
// Full the beginning of a full list that ends with the update that has Complete.
// What a full list does not name is dropped at its end and not before. One that
// this agent cannot use, because it has a fact of a kind that is not known here,
// is left out and named in the error; the others count.
func (a *Attestor) Apply(_ context.Context, u *capb.RegistrationUpdate) error {
	errs, many := a.apply(u)
	if many {
		debug.FreeOSMemory() // what the messages were
	}
	return errors.Join(errs...)
}

// apply takes an update; many tells that it was the last of very many.
func (a *Attestor) apply(u *capb.RegistrationUpdate) (errs []error, many bool) {
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
		many = len(a.index.listing) >= manyRegistrations
		a.index.sweep()
		a.notify()
		a.saveIdentitiesSoon()
	}
	return errs, many
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

// Resume is called before updates of another stream are applied: a full list that
// was not complete is forgotten. It returns what identifies the registrations that
// the attestor has: the SHA-256 of their ids in order, each with a line feed. The
// authority sends nothing to who has all.
func (a *Attestor) Resume() []byte {
	a.mu.Lock()
	a.index.listing = nil
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
	for _, e := range a.index.byID {
		if e.spiffeID == id {
			return true
		}
	}
	return false
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

// saveIdentities writes the file. Registrations that change meanwhile are in it or
// not; then it is written again.
func (a *Attestor) saveIdentities() {
	a.saveMu.Lock()
	defer a.saveMu.Unlock()
	a.mu.Lock()
	a.saving = false
	ids := slices.Collect(maps.Keys(a.index.byID))
	a.mu.Unlock()
	// Compressed while it is made, so that it takes little memory at once.
	var data bytes.Buffer
	w, err := flate.NewWriter(&data, flate.BestSpeed)
	for part := range slices.Chunk(ids, savePart) {
		for _, r := range a.some(part) {
			if err == nil {
				_, err = protodelim.MarshalTo(w, r)
			}
		}
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = statefile.Write(a.path(identityFile), identityMagic, data.Bytes())
	}
	if err != nil {
		a.cfg.Log.WarnContext(a.ctx, "identities are not kept for a restart", slog.Any("error", err))
	}
	if len(ids) >= manyRegistrations {
		debug.FreeOSMemory() // what came in and what was written
	}
}

// some returns those registrations that are still there.
func (a *Attestor) some(ids []string) []*capb.Registration {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*capb.Registration, 0, len(ids))
	for _, id := range ids {
		if e := a.index.byID[id]; e != nil {
			r := a.index.registration(e)
			out = append(out, &capb.Registration{Id: r.ID, SpiffeId: r.SPIFFEID.String(), Facts: r.Facts})
		}
	}
	return out
}

func (a *Attestor) loadIdentities() error {
	data, err := statefile.Read(a.path(identityFile), identityMagic, identityLimit)
	if err != nil {
		return err
	}
	in := bufio.NewReader(flate.NewReader(bytes.NewReader(data)))
	var left error
	for {
		r := new(capb.Registration)
		err := protodelim.UnmarshalOptions{MaxSize: maxRegistration}.UnmarshalFrom(in, r)
		if errors.Is(err, io.EOF) {
			return left
		}
		if err != nil {
			return errors.Join(left, fmt.Errorf("stored identities: %w", err))
		}
		if err := a.put(r); err != nil {
			left = errors.Join(left, err)
		}
	}
}
