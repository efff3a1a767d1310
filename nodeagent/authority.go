package nodeagent

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/nodeagent/latest"
	"github.com/writ-mesh/writ/nodeagent/svid"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// authority is the certificate authority as the agent uses it. Before the agent
// has its own certificate there is no connection and every call fails.
type authority struct {
	client atomic.Pointer[capb.CertificateAuthorityClient]
	up     atomic.Bool
	bundle latest.Value[[]byte] // PEM
	log    *slog.Logger
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
	if len(roots) == 0 {
		return errors.New("trust bundle is empty")
	}
	// In an order of its own: the same roots in another order are no change.
	roots = slices.SortedFunc(slices.Values(roots), bytes.Compare)
	var out []byte
	for _, der := range roots {
		if _, err := x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("trust bundle: %w", err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if old, _ := a.bundle.Get(); !bytes.Equal(old, out) {
		a.bundle.Set(out)
	}
	return nil
}

// Bounds of the back-off between attempts to follow the bundle.
const (
	followMin = 100 * time.Millisecond
	followMax = time.Second
)

// run uses conn and follows the trust bundle until ctx ends.
func (a *authority) run(ctx context.Context, conn grpc.ClientConnInterface) error {
	client := capb.NewCertificateAuthorityClient(conn)
	a.client.Store(&client)
	defer a.client.Store(nil)
	wait := followMin
	for {
		worked, err := a.follow(ctx, client)
		if a.up.Swap(false) {
			a.report(false)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if worked {
			wait = followMin
		}
		a.log.DebugContext(ctx, "trust bundle is not followed, will try again", slog.Any("error", err))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, followMax)
	}
}

// follow takes bundles from one stream until it ends.
func (a *authority) follow(ctx context.Context, client capb.CertificateAuthorityClient) (worked bool, err error) {
	stream, err := client.WatchBundle(ctx, &capb.WatchBundleRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	for {
		b, err := stream.Recv()
		if err != nil {
			return worked, err
		}
		if err := a.setBundle(b.GetRoots()); err != nil {
			a.log.WarnContext(ctx, "trust bundle is not used", slog.Any("error", err))
			continue
		}
		worked = true
		if !a.up.Swap(true) {
			a.report(true)
		}
	}
}
