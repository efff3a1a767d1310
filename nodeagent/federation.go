package nodeagent

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/rpc"
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
	for _, b := range list.GetBundles() {
		f, err := workloadapi.ParseForeign(a.td, b.GetTrustDomain(), b.GetRoots(), b.GetJwks())
		if err != nil {
			a.log.WarnContext(ctx, "another trust domain is not accepted", slog.Any("error", err))
			continue
		}
		out = append(out, f)
	}
	a.foreign.Set(out)
}
