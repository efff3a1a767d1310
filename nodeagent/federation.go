package nodeagent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/nodeagent/foreign"
	"github.com/writ-mesh/writ/nodeagent/sds"
	"github.com/writ-mesh/writ/nodeagent/workloadapi"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// foreignMin and foreignMax bound the back-off towards the authority.
const (
	foreignMin = 100 * time.Millisecond
	foreignMax = 2 * time.Second
)

// followForeign takes the bundles of other trust domains from the authority, until
// ctx ends. While it is away what it said last stays.
func (a *authority) followForeign(ctx context.Context, conn grpc.ClientConnInterface) error {
	return rpc.Follow(ctx, a.log, "other trust domains", foreignMin, foreignMax, func(ctx context.Context) (bool, error) { return a.receiveForeign(ctx, conn) })
}

func (a *authority) receiveForeign(ctx context.Context, conn grpc.ClientConnInterface) (worked bool, err error) {
	stream, err := capb.NewFederationClient(conn).WatchFederated(ctx, &capb.WatchFederatedRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	for {
		list, err := stream.Recv()
		if err != nil {
			return worked, err
		}
		worked = true
		a.setForeign(ctx, list)
	}
}

// setForeign takes all bundles; one that cannot be read is left out.
func (a *authority) setForeign(ctx context.Context, list *capb.FederatedBundles) {
	out := make([]workloadapi.Foreign, 0, len(list.GetBundles()))
	bounded := make([]sds.Foreign, 0, len(list.GetBundles()))
	for _, b := range list.GetBundles() {
		f, err := workloadapi.ParseForeign(a.td, b.GetTrustDomain(), b.GetRoots(), b.GetJwks())
		if err != nil {
			a.log.WarnContext(ctx, "another trust domain is not accepted", slog.Any("error", err))
			continue
		}
		out = append(out, f)
		e, err := a.bound(b)
		if err != nil {
			a.log.WarnContext(ctx, "Envoys do not accept another trust domain", slog.Any("error", err))
			continue
		}
		bounded = append(bounded, e)
	}
	if have, _ := a.bounded.Get(); !sds.SameForeign(have, bounded) {
		names := make([]string, len(bounded))
		for i, f := range bounded {
			names[i] = f.TrustDomain
		}
		a.log.InfoContext(ctx, "roots of other trust domains", slog.Any("trust_domains", names))
	}
	a.foreign.Set(out)
	a.bounded.Set(bounded)
}

// bound makes of a bundle what Envoys get. As long as the roots are the same it is too.
func (a *authority) bound(b *capb.FederatedBundle) (sds.Foreign, error) {
	roots := slices.SortedFunc(slices.Values(b.GetRoots()), bytes.Compare)
	sum := sha256.Sum256(bytes.Join(roots, nil))
	version := hex.EncodeToString(sum[:8])
	have, _ := a.bounded.Get()
	if i := slices.IndexFunc(have, func(f sds.Foreign) bool { return f.TrustDomain == b.GetTrustDomain() && f.Version == version }); i >= 0 {
		return have[i], nil
	}
	td, err := spiffeid.TrustDomainFromString(b.GetTrustDomain())
	if err != nil {
		return sds.Foreign{}, err
	}
	certs := make([]*x509.Certificate, 0, len(roots))
	for _, der := range roots {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return sds.Foreign{}, fmt.Errorf("bundle of %s: %w", td, err)
		}
		certs = append(certs, c)
	}
	text, err := foreign.Bound(td, certs)
	if err != nil {
		return sds.Foreign{}, err
	}
	return sds.Foreign{TrustDomain: td.Name(), Version: version, Roots: text}, nil
}
