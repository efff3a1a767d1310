package credential

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// revocationsFile has the list of revocations that came last, for a start while
	// the authority is away: the SHA-256 of a message, and the message.
	revocationsFile = "revocations.pb"
	// maxRevocationsFile bounds it in bytes: as much as a message may have.
	maxRevocationsFile = 64 << 20
	// revocationsMin and revocationsMax bound the back-off towards the authority.
	revocationsMin = 50 * time.Millisecond
	revocationsMax = time.Second
)

// revoked is a list of revocations, to look certificates up in. It is never changed.
type revoked struct {
	list *capb.RevocationList
	// serials are in lower-case hexadecimal without leading zeros.
	serials, identities map[string]struct{}
	// authorities tells that there are whole authorities among what is revoked.
	authorities bool
}

func newRevoked(list *capb.RevocationList) *revoked {
	r := &revoked{list: list, serials: map[string]struct{}{}, identities: map[string]struct{}{}}
	for _, e := range list.GetRevocations() {
		switch {
		case e.GetSerial() != "":
			r.serials[strings.TrimLeft(strings.ToLower(e.GetSerial()), "0")] = struct{}{}
		case e.GetSpiffeId() != "":
			r.identities[e.GetSpiffeId()] = struct{}{}
		default:
			r.authorities = true
		}
	}
	return r
}

// certificate tells whether a certificate is revoked by its serial number.
func (r *revoked) certificate(leaf *x509.Certificate) bool {
	_, there := r.serials[leaf.SerialNumber.Text(16)]
	return there
}

// check refuses a certificate that is revoked, or whose identity is.
func (r *revoked) check(leaf *x509.Certificate) error {
	id := ""
	if len(leaf.URIs) > 0 {
		id = leaf.URIs[0].String()
	}
	if r.certificate(leaf) {
		return fmt.Errorf("the certificate %s of %s is revoked", leaf.SerialNumber.Text(16), id)
	}
	if _, there := r.identities[id]; there {
		return fmt.Errorf("the identity %s is revoked", id)
	}
	return nil
}

// revocationsTo is who wants to hear of revocations besides the source.
type revocationsTo struct {
	take      func(*capb.RevocationList)
	following func(up bool)
}

// OnRevocations makes take hear each list of what is revoked, and at once the one
// that is known from before the start, if there is one; following hears whether
// lists are being followed and may be nil. It is called before Run. Lists must not
// be changed.
func (s *Source) OnRevocations(take func(*capb.RevocationList), following func(up bool)) {
	s.revocations = revocationsTo{take, following}
	if r := s.revokedNow(); r.list != nil {
		take(r.list)
	}
}

// followRevocations keeps what is revoked as the authority says, until ctx ends.
// While it is away what it said last stays in force.
func (s *Source) followRevocations(ctx context.Context) {
	_ = rpc.Follow(ctx, s.log, "revocations", revocationsMin, revocationsMax, func(ctx context.Context) (worked bool, err error) {
		conn, err := s.caConn()
		if err != nil {
			return false, err
		}
		stream, err := capb.NewRevocationFeedClient(conn).WatchRevocations(ctx, &capb.WatchRevocationsRequest{})
		if err != nil {
			return false, err
		}
		defer func() { s.following(worked, false) }()
		for {
			list, err := stream.Recv()
			if err != nil {
				return worked, err
			}
			s.following(!worked, true)
			worked = true
			if err := s.giveBack(ctx, conn, list); err != nil {
				return worked, err
			}
			s.takeRevocations(ctx, list)
		}
	})
}

// following passes up on, if that is a change.
func (s *Source) following(change, up bool) {
	if change && s.revocations.following != nil {
		s.revocations.following(up)
	}
}

// takeRevocations puts a list into force: connections of those who are revoked end at
// once, and others hear of it when it is on disk. A process that dies in between would
// else start anew, while the authority is away, with what was refused admitted again.
// What cannot be saved holds all the same.
func (s *Source) takeRevocations(ctx context.Context, list *capb.RevocationList) {
	old := s.revokedNow()
	s.mu.Lock()
	s.revoked = newRevoked(list)
	s.tell()
	s.mu.Unlock()
	s.cutOff()
	if !proto.Equal(old.list, list) {
		if err := s.saveRevocations(list); err != nil {
			s.log.ErrorContext(ctx, "what is revoked is not saved; a start while the authority is away will know the list of before", slog.Any("error", err))
		}
	}
	if s.revocations.take != nil {
		s.revocations.take(list)
	}
}

func (s *Source) revokedNow() *revoked {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revoked
}

// admit refuses the other end of a connection, with its chain, if it is revoked.
func (s *Source) admit(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return nil // refused by others
	}
	return s.revokedNow().check(chain[0])
}

// cutOff ends the connections of those who may have none any more: whose certificate
// is revoked, and, once an authority is revoked, callers whose root is not trusted.
// (After a rotation that took its time connections that began under the old root are
// good.) This source's own connection to a service of a root that was dropped goes
// on: over it a new certificate comes.
func (s *Source) cutOff() {
	revoked := func(chain []*x509.Certificate) bool { return s.admit(chain) != nil }
	n := s.dialed.Close(revoked) + s.served.Close(func(chain []*x509.Certificate) bool { return len(chain) > 0 && (revoked(chain) || s.untrusted(chain)) })
	if n > 0 {
		s.log.Warn("connections of revoked certificates are closed", slog.Int("connections", n))
	}
}

// untrusted says, once an authority is revoked, that the root of a chain of this trust
// domain is not trusted any more. For others files vouch (Foreign).
func (s *Source) untrusted(chain []*x509.Certificate) bool {
	if !s.revokedNow().authorities {
		return false
	}
	if id, err := x509svid.IDFromCert(chain[0]); err == nil && id.TrustDomain() != s.td {
		return false
	}
	// Whether it has expired is no matter here.
	_, _, err := x509svid.Verify(chain, s.currentBundle(), x509svid.WithTime(chain[0].NotBefore))
	return err != nil
}

// condemned tells whether the certificate of this source itself is revoked.
func (s *Source) condemned(svid *x509svid.SVID) bool {
	return s.revokedNow().certificate(svid.Certificates[0])
}

func (s *Source) saveRevocations(list *capb.RevocationList) error {
	data, err := proto.Marshal(list)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	return atomicfile.Write(filepath.Join(s.cfg.Dir, revocationsFile), append(sum[:], data...), 0o600)
}

// loadRevocations reads what saveRevocations wrote. A damaged file is no reason not
// to start: the authority has the list too.
func (s *Source) loadRevocations(ctx context.Context) {
	list, err := readRevocations(filepath.Join(s.cfg.Dir, revocationsFile))
	if err == nil {
		s.revoked = newRevoked(list)
		return
	}
	s.revoked = new(revoked)
	if !errors.Is(err, fs.ErrNotExist) {
		s.log.WarnContext(ctx, "the file of what is revoked is not used; nothing is, until the authority says so again", slog.Any("error", err))
	}
}

func readRevocations(path string) (*capb.RevocationList, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxRevocationsFile {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", path, info.Size(), maxRevocationsFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(data) < sha256.Size {
		return nil, fmt.Errorf("%s is cut off", path)
	}
	if sum := sha256.Sum256(data[sha256.Size:]); !bytes.Equal(sum[:], data[:sha256.Size]) {
		return nil, fmt.Errorf("%s is damaged", path)
	}
	list := new(capb.RevocationList)
	if err := proto.Unmarshal(data[sha256.Size:], list); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}
