package pilot

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/pilot/model"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// revocationsFile in the state directory has what was revoked last, for a start
	// while the authority is away.
	revocationsFile = "revocations.json"
	// maxRevoked bounds the entries of a list that are enforced, the newest first. What
	// is left out fails in new handshakes only.
	maxRevoked = 10_000
)

// followRevocations makes what the authority says is revoked part of the
// configuration. While it is away what it said last stays in force.
func (p *Pilot) followRevocations(source *credential.Source) {
	td := source.ID().TrustDomain()
	source.OnRevocations(func(list *capb.RevocationList) {
		r, bad := revokedOf(list, td)
		for _, why := range bad {
			p.log.Error("a revocation makes no sense and is passed over", slog.Any("error", why))
		}
		p.setRevoked(r)
	}, func(up bool) {
		connected := 0.0
		if up {
			connected = 1
		}
		p.metrics.revocationsConnected.Set(connected)
	})
}

// revokedOf reads a list; what makes no sense in it is left out, so that it does not
// keep the rest from being enforced.
func revokedOf(list *capb.RevocationList, td spiffeid.TrustDomain) (r *model.Revoked, bad []error) {
	r = &model.Revoked{Sequence: list.GetSequence()}
	all := list.GetRevocations()
	for _, e := range all[max(0, len(all)-maxRevoked):] {
		if strings.HasPrefix(e.GetSpiffeId(), "dns:") {
			continue // of a server outside the mesh (ACME), whose certificate no proxy takes
		}
		if e.GetSerial() == "" && e.GetSpiffeId() == "" && isHex(e.GetAuthority()) {
			r.Everybody = max(r.Everybody, e.GetSequence())
			r.Newest = max(r.Newest, e.GetSequence())
			continue
		}
		id, err := spiffeid.FromString(e.GetSpiffeId())
		switch {
		case err != nil:
		case !id.MemberOf(td):
			err = fmt.Errorf("%s is not in the trust domain %s", id, td.Name())
		case e.GetSerial() != "" && (!isHex(e.GetSerial()) || len(e.GetSerial()) > 40 || !isHex(e.GetSha256()) || len(e.GetSha256()) != 64):
			err = fmt.Errorf("serial %q, SHA-256 %q", e.GetSerial(), e.GetSha256())
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("revocation %d: %w", e.GetSequence(), err))
			continue
		}
		if strings.HasPrefix(id.Path(), "/ns/") {
			// Nobody else gets into a port of a workload, so that there is nothing to close.
			r.Newest = max(r.Newest, e.GetSequence())
		}
		if e.GetSerial() == "" {
			r.Identities = append(r.Identities, model.RevokedIdentity{SPIFFEID: id.String(), Sequence: e.GetSequence()})
			continue
		}
		r.Certificates = append(r.Certificates, model.RevokedCertificate{
			Serial: e.GetSerial(), SPIFFEID: id.String(), SHA256: e.GetSha256(), Sequence: e.GetSequence(),
		})
	}
	return r, bad
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && s != ""
}

// setRevoked puts a list into force: the mesh that is being distributed is translated
// with it.
func (p *Pilot) setRevoked(r *model.Revoked) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.revoked
	r.Newest, r.Everybody = max(r.Newest, old.Newest), max(r.Everybody, old.Everybody)
	if reflect.DeepEqual(old, r) {
		return
	}
	p.revoked = r
	p.metrics.revocations.Set(float64(r.Sequence))
	if !sameRevoked(old, r) {
		p.log.Info("revocations", slog.Uint64("list", r.Sequence), slog.Int("certificates", len(r.Certificates)), slog.Int("identities", len(r.Identities)))
		if p.current != nil {
			p.compile(p.current.mesh, time.Now())
		}
	}
	p.notify()
	if p.revokedFile == "" {
		return
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = atomicfile.Write(p.revokedFile, data, 0o600)
	}
	if err != nil {
		p.log.Error("what is revoked is not saved; a start while the authority is away will not know it", slog.Any("error", err))
	}
}

// sameRevoked tells whether two lists come to the same configuration.
func sameRevoked(a, b *model.Revoked) bool {
	return a.Newest == b.Newest && a.Everybody == b.Everybody && slices.Equal(a.Certificates, b.Certificates) && slices.Equal(a.Identities, b.Identities)
}

// loadRevoked reads what setRevoked saved. A damaged file is no reason not to start:
// the authority has the list too.
func loadRevoked(file string, log *slog.Logger) *model.Revoked {
	r := new(model.Revoked)
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, r)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("the file of what is revoked is not used; nothing is, until the authority says so again", slog.String("file", file), slog.Any("error", err))
		}
		return new(model.Revoked)
	}
	return r
}

func (p *Pilot) openRevoked(state string) {
	p.revoked = new(model.Revoked)
	if state != "" {
		p.revokedFile = filepath.Join(state, revocationsFile)
		p.revoked = loadRevoked(p.revokedFile, p.log)
	}
}
