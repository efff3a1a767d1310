package nodeagent

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/nodeagent/crl"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// revocationsMin and revocationsMax bound the back-off towards the authority.
	revocationsMin = 50 * time.Millisecond
	revocationsMax = time.Second
	// crlTick is how often lists in use are looked at anew: their end may come, and
	// the clock may jump.
	crlTick = 30 * time.Second
)

// crlState is what the Envoys have been given.
type crlState struct {
	certificates int
	// problem is why they are not given the newest lists.
	problem string
}

// String is the state for people.
func (s crlState) String() string {
	text := "nothing is revoked"
	if s.certificates > 0 {
		text = fmt.Sprintf("%d certificates are revoked", s.certificates)
	}
	if s.problem != "" {
		text = "rejected (" + s.problem + "); before that " + text
	}
	return text
}

// followRevocations takes what is revoked from the authority, until ctx ends. While it
// is away what it said last stays in force.
func (a *authority) followRevocations(ctx context.Context, conn grpc.ClientConnInterface) error {
	return rpc.Follow(ctx, a.log, "revocations", revocationsMin, revocationsMax, func(ctx context.Context) (bool, error) { return a.receiveRevocations(ctx, conn) })
}

func (a *authority) receiveRevocations(ctx context.Context, conn grpc.ClientConnInterface) (worked bool, err error) {
	stream, err := capb.NewRevocationFeedClient(conn).WatchRevocations(ctx, &capb.WatchRevocationsRequest{})
	if err != nil {
		return false, err
	}
	for {
		list, err := stream.Recv()
		if err != nil {
			return worked, err
		}
		worked = true
		a.revoked.Set(list)
		a.svids.SetRevoked(serials(list))
	}
}

// serials are those of the certificates that are revoked one by one. A certificate of
// a revoked identity is not replaced: there would be none.
func serials(list *capb.RevocationList) map[string]struct{} {
	out := map[string]struct{}{}
	for _, r := range list.GetRevocations() {
		if s := strings.TrimLeft(r.GetSerial(), "0"); s != "" {
			out[s] = struct{}{}
		}
	}
	return out
}

// keepCRLs hands the authority's lists on to the Envoys, as long as they may be used
// with the trust bundle of the moment, until ctx ends. Lists that may not be used
// change nothing: those of before stay while they may be, and then there are none.
func (a *authority) keepCRLs(ctx context.Context) error {
	var good [][]byte
	for {
		list, listChanged := a.revoked.Get()
		bundle, bundleChanged := a.bundle.Get()
		if list != nil {
			good = a.useCRLs(ctx, list, good, bundle)
		}
		tick := time.NewTimer(crlTick)
		select {
		case <-ctx.Done():
		case <-listChanged:
		case <-bundleChanged:
		case <-tick.C:
		}
		tick.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// useCRLs puts the lists into use, or else those that were good before. It returns
// those in use.
func (a *authority) useCRLs(ctx context.Context, list *capb.RevocationList, good [][]byte, bundle []byte) [][]byte {
	roots, now := parsePEM(bundle), time.Now()
	u, err := crl.Check(list.GetCrls(), roots, now)
	state := crlState{problem: list.GetProblem()}
	if err == nil {
		good = list.GetCrls()
	} else {
		state.problem = err.Error()
		if u, err = crl.Check(good, roots, now); err != nil {
			u, good = crl.Usable{}, nil
		}
	}
	state.certificates = u.Certificates
	if old, _ := a.crls.Get(); !bytes.Equal(old, u.PEM) {
		a.crls.Set(u.PEM)
	}
	a.observeCRLs(list.GetSequence(), state.problem == "")
	if old, _ := a.crlState.Get(); old != state {
		a.crlState.Set(state)
		level := slog.LevelInfo
		if state.problem != "" {
			level = slog.LevelError
		}
		a.log.Log(ctx, level, "certificate revocation lists", slog.Uint64("list", list.GetSequence()), slog.String("revocation", state.String()))
	}
	return good
}

func parsePEM(text []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return out
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil { // setBundle looked at them
			out = append(out, c)
		}
		text = rest
	}
}
