package nodeagent

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/nodeagent/latest"
	"github.com/writ-mesh/writ/nodeagent/sds"
	"github.com/writ-mesh/writ/nodeagent/svid"
	"github.com/writ-mesh/writ/nodeagent/workloadapi"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// authority is the certificate authority as the agent uses it. Before the agent
// has its own certificate there is no connection and every call fails.
type authority struct {
	td     spiffeid.TrustDomain
	client atomic.Pointer[capb.CertificateAuthorityClient]
	tokens atomic.Pointer[capb.JWTAuthorityClient]
	up     atomic.Bool
	bundle latest.Value[[]byte] // PEM
	keys   latest.Value[workloadapi.Keys]
	// foreign are the other trust domains, and bounded the same for Envoys; nil until
	// the authority has said which there are.
	foreign latest.Value[[]workloadapi.Foreign]
	bounded latest.Value[[]sds.Foreign]
	active  latest.Value[string] // key id of the authority that signs
	moved   latest.Value[struct{}]
	// revoked is what the authority said last, nil before the first time; crls is what
	// the Envoys get of it in PEM, and crlState how that stands.
	revoked  latest.Value[*capb.RevocationList]
	crls     latest.Value[[]byte]
	crlState latest.Value[crlState]
	// goodCRLs are the lists in use, of keepCRLs alone once that runs.
	goodCRLs [][]byte
	svids    *svid.Store
	sds      *sds.Server
	log      *slog.Logger
	// observeCRLs is told the number of the list in use, and whether it is the newest.
	observeCRLs func(sequence uint64, newest bool)
	// asking bounds the requests for tokens under way.
	asking chan struct{}
	// report is called when the connection comes or goes.
	report func(up bool)
}

var errNoIdentity = errors.New("the agent has no certificate of its own yet")

// Issue implements svid.Issuer.
func (a *authority) Issue(ctx context.Context, id spiffeid.ID, csr []byte) (svid.Issued, error) {
	client := a.client.Load()
	if client == nil {
		return svid.Issued{}, errNoIdentity
	}
	resp, err := (*client).Issue(ctx, &capb.IssueRequest{SpiffeId: id.String(), Csr: csr})
	if err != nil {
		return svid.Issued{}, err
	}
	return svid.Issued{Chain: resp.GetChain(), Roots: resp.GetBundle().GetRoots()}, nil
}

// setBundle takes roots in DER.
func (a *authority) setBundle(roots [][]byte) error {
	out, err := bundlePEM(roots)
	if err != nil {
		return err
	}
	if old, _ := a.bundle.Get(); !bytes.Equal(old, out) {
		a.bundle.Set(out)
	}
	return nil
}

// bundlePEM makes a trust bundle of roots in DER.
func bundlePEM(roots [][]byte) ([]byte, error) {
	if len(roots) == 0 {
		return nil, errors.New("trust bundle is empty")
	}
	// In an order of its own: the same roots in another order are no change.
	roots = slices.SortedFunc(slices.Values(roots), bytes.Compare)
	var out []byte
	for _, der := range roots {
		if _, err := x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("trust bundle: %w", err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out, nil
}

// use begins to ask for certificates over conn, until ctx ends.
func (a *authority) use(ctx context.Context, conn grpc.ClientConnInterface) error {
	client := capb.NewCertificateAuthorityClient(conn)
	a.client.Store(&client)
	defer a.client.Store(nil)
	tokens := capb.NewJWTAuthorityClient(conn)
	a.tokens.Store(&tokens)
	defer a.tokens.Store(nil)
	<-ctx.Done()
	return ctx.Err()
}

// Take implements credential.Consumer: the bundle goes to every Envoy.
func (a *authority) Take(b *capb.Bundle) error {
	if err := a.setBundle(b.GetRoots()); err != nil {
		return err
	}
	a.setKeys(b.GetJwks())
	a.active.Set(b.GetActiveAuthority())
	a.svids.SetAuthorities(b.GetActiveAuthority(), trusted(b.GetRoots()))
	a.moved.Set(struct{}{})
	return nil
}

// trusted gives the key ids of roots in DER that setBundle has taken.
func trusted(roots [][]byte) []string {
	var ids []string
	for _, der := range roots {
		if c, err := x509.ParseCertificate(der); err == nil {
			ids = append(ids, hex.EncodeToString(c.SubjectKeyId))
		}
	}
	return ids
}

// Standing implements credential.Consumer: a bundle is in use when every Envoy has
// accepted it, and an authority's certificates are in use as long as an Envoy or
// another workload has one.
func (a *authority) Standing() (credential.Standing, <-chan struct{}) {
	_, changed := a.moved.Get()
	active, _ := a.active.Get()
	st := a.sds.Standing(active)
	out := credential.Standing{Behind: st.Behind, Stale: st.Stale, Authorities: st.Authorities}
	for _, v := range a.svids.Status() {
		if v.SVID != nil && v.SVID.NotAfter().After(time.Now()) {
			out.Authorities = append(out.Authorities, v.SVID.Authority())
		}
	}
	return out, changed
}

// Connected implements credential.Consumer.
func (a *authority) Connected(up bool) {
	if a.up.Swap(up) != up {
		a.report(up)
	}
}
