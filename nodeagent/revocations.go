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

	"github.com/writ-mesh/writ/nodeagent/crl"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// crlTick is how often lists in use are looked at anew: their end may come, and
// the clock may jump.
const crlTick = 30 * time.Second

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

// takeRevocations takes a list of what is revoked.
func (a *authority) takeRevocations(list *capb.RevocationList) {
	a.revoked.Set(list)
	a.svids.SetRevoked(serials(list))
}

// beginWith puts the trust bundle of the last time into use, and first the lists that
// go with it: an Envoy that has them is not to be without, because the agent was
// started while the authority is away.
func (a *authority) beginWith(ctx context.Context, roots [][]byte) error {
	bundle, err := bundlePEM(roots)
	if err != nil {
		return err
	}
	if list, _ := a.revoked.Get(); list != nil {
		a.goodCRLs = a.useCRLs(ctx, list, nil, bundle)
	}
	return a.setBundle(roots)
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
	for {
		list, listChanged := a.revoked.Get()
		bundle, bundleChanged := a.bundle.Get()
		if list != nil {
			a.goodCRLs = a.useCRLs(ctx, list, a.goodCRLs, bundle)
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
