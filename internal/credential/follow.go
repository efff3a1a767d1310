package credential

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/atomicfile"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// hurryMax bounds how long a certificate of an authority that does not sign any
// more is used on. The moment is random within it, or within a quarter of the life
// that is left, so that not everybody renews at once.
const hurryMax = 10 * time.Second

// Consumer hands the trust bundle on to others, as a node agent does to Envoys.
// The source tells the authority that a bundle is in use when everybody has it.
type Consumer interface {
	// Take takes a bundle. With an error the source tries again.
	Take(b *capb.Bundle) error
	// Standing says how things stand with the newest bundle, and gives a channel
	// that is closed when that changes.
	Standing() (Standing, <-chan struct{})
	// Connected hears whether the bundle is followed, each time that it changes.
	Connected(up bool)
}

// Standing is how far a Consumer has got.
type Standing struct {
	// Behind are the names of those who have not taken the newest bundle.
	Behind []string
	// Stale are the names of those who use a certificate of an authority that does
	// not sign any more.
	Stale []string
	// Authorities are the key ids of the authorities whose certificates are in use.
	Authorities []string
}

// Attach makes c get the bundle too. It is called before Run.
func (s *Source) Attach(c Consumer) { s.consumer = c }

// trust is what the authority said last.
type trust struct {
	bundle *x509bundle.Bundle
	// sequence is 0 for a bundle from disk.
	sequence uint64
	// active is the key id of the authority that signs, empty if unknown.
	active string
}

// takeBundle takes what the authority said. An answer to a request may be older
// than what came over the stream meanwhile, and then says nothing new.
func (s *Source) takeBundle(b *capb.Bundle, answer bool) error {
	s.taking.Lock()
	defer s.taking.Unlock()
	old := s.trusted()
	if answer && b.GetSequence() < old.sequence {
		return nil
	}
	t := trust{bundle: x509bundle.New(s.td), sequence: b.GetSequence(), active: b.GetActiveAuthority()}
	for _, der := range b.GetRoots() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("trust bundle from the authority: %w", err)
		}
		t.bundle.AddX509Authority(c)
	}
	if t.bundle.Empty() {
		return errors.New("trust bundle from the authority is empty")
	}
	if !old.bundle.Equal(t.bundle) {
		data, err := t.bundle.Marshal()
		if err != nil {
			return err
		}
		if err := atomicfile.Write(filepath.Join(s.cfg.Dir, bundleFile), data, 0o644); err != nil {
			return err
		}
	}
	s.setTrust(t)
	s.cutOff()
	return nil
}

// followBundle follows the trust bundle until ctx ends.
func (s *Source) followBundle(ctx context.Context) {
	for ctx.Err() == nil {
		_ = s.retry(ctx, "follow the trust bundle", s.receiveBundles)
	}
}

// receiveBundles takes bundles until the stream ends. An end after at least one
// bundle is no error: the next stream is opened at once.
func (s *Source) receiveBundles(ctx context.Context) error {
	conn, err := s.caConn()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := capb.NewCertificateAuthorityClient(conn).WatchBundle(ctx)
	if err != nil {
		cancel()
		return err
	}
	taken := make(chan uint64, 1)
	var wg sync.WaitGroup
	wg.Go(func() { s.acknowledge(ctx, stream, taken) })
	defer wg.Wait()
	defer cancel()
	up := false
	defer func() {
		if up && s.consumer != nil {
			s.consumer.Connected(false)
		}
	}()
	for {
		b, err := stream.Recv()
		if err != nil {
			if up {
				return nil
			}
			return err
		}
		if err := s.handOn(b); err != nil {
			return err
		}
		if !up && s.consumer != nil {
			s.consumer.Connected(true)
		}
		up = true
		select {
		case <-taken: // the one before, of which nobody has heard yet
		default:
		}
		taken <- b.GetSequence()
	}
}

// handOn takes a bundle of the stream and gives it to whom it concerns.
func (s *Source) handOn(b *capb.Bundle) error {
	if err := s.takeBundle(b, false); err != nil {
		return err
	}
	if s.consumer == nil {
		return nil
	}
	return s.consumer.Take(b)
}

// acknowledge tells the authority where this process stands, whenever that
// changes. taken has the sequence of each bundle that the stream brought. What an
// earlier stream brought does not count: it may have been another authority's.
func (s *Source) acknowledge(ctx context.Context, stream grpc.BidiStreamingClient[capb.WatchBundleRequest, capb.Bundle], taken <-chan uint64) {
	var newest uint64
	var sent *capb.WatchBundleRequest
	for {
		own, changed := s.leafAuthority()
		st, moved := s.standing()
		req := &capb.WatchBundleRequest{
			Acknowledged: sent.GetAcknowledged(),
			Authorities:  slices.Compact(slices.Sorted(slices.Values(append(st.Authorities, own)))),
			Waiting:      slices.Compact(slices.Sorted(slices.Values(slices.Concat(st.Behind, st.Stale)))),
		}
		// newest was read before the standing, which is that with this bundle or one
		// after it.
		if len(st.Behind) == 0 {
			req.Acknowledged = newest
		}
		if sent == nil || !same(req, sent) {
			if stream.Send(req) != nil {
				return // receiveBundles hears why
			}
			sent = req
		}
		select {
		case <-ctx.Done():
			return
		case newest = <-taken:
		case <-changed:
		case <-moved:
		}
	}
}

func same(a, b *capb.WatchBundleRequest) bool {
	return a.GetAcknowledged() == b.GetAcknowledged() && slices.Equal(a.GetAuthorities(), b.GetAuthorities()) && slices.Equal(a.GetWaiting(), b.GetWaiting())
}

// standing is that of the consumer; without one nobody is waited for.
func (s *Source) standing() (Standing, <-chan struct{}) {
	if s.consumer == nil {
		return Standing{}, nil
	}
	return s.consumer.Standing()
}

// leafAuthority is the key id of the authority of this source's certificate, and a
// channel that is closed when the certificate or the trust changes.
func (s *Source) leafAuthority() (string, <-chan struct{}) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return authorityOf(s.svid), s.changed
}

func authorityOf(svid *x509svid.SVID) string {
	return hex.EncodeToString(svid.Certificates[0].AuthorityKeyId)
}

// untilRenewal waits until the certificate is to be renewed: at half of the life
// that is left, or soon if its authority does not sign any more.
func (s *Source) untilRenewal(ctx context.Context) error {
	svid := s.current()
	leaf := svid.Certificates[0]
	until := s.wall().Add(renewIn(leaf.NotBefore, leaf.NotAfter, s.wall(), mathrand.Float64()))
	var seen trust
	for {
		_, changed := s.leafAuthority()
		now := s.wall()
		if s.condemned(svid) {
			return nil
		}
		if t := s.trusted(); t != seen && t.active != "" && t.active != authorityOf(svid) {
			seen = t
			_, _, err := x509svid.Verify(svid.Certificates, t.bundle, x509svid.WithTime(leaf.NotBefore))
			if soon := now.Add(hurryIn(leaf.NotAfter.Sub(now), err != nil, mathrand.Float64())); soon.Before(until) {
				until = soon
			}
		}
		if !now.Before(until) || s.turnedBack(leaf, now) {
			return nil
		}
		timer := time.NewTimer(min(until.Sub(now), lookAtClock))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-changed:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// turnedBack tells whether the clock went back, since the certificate came, to before
// its life. One of an authority whose clock is ahead of this one's is none: the next
// would be the same.
func (s *Source) turnedBack(leaf *x509.Certificate, now time.Time) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return now.Before(leaf.NotBefore) && now.Before(s.since)
}

// hurryIn says how long to use a certificate of an authority that does not sign
// any more, of whose life some is left; a useless one, whose root is not trusted any
// more, up to renewMin. jitter is in [0, 1).
func hurryIn(left time.Duration, useless bool, jitter float64) time.Duration {
	if useless {
		return time.Duration(float64(renewMin) * jitter)
	}
	return max(time.Duration(float64(min(left/4, hurryMax))*jitter), renewMin)
}

// disowned tells that the configured trust bundle, which whoever runs the
// authority provides, does not have the root of this source's certificate: the
// root was replaced without waiting for this source.
func (s *Source) disowned() bool {
	configured, err := x509bundle.Load(s.td, s.cfg.TrustBundle)
	if err != nil || configured.Empty() {
		return false
	}
	_, _, err = x509svid.Verify(s.current().Certificates, configured, x509svid.WithTime(s.now()))
	return err != nil
}
