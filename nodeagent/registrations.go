package nodeagent

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// Bounds of the back-off between attempts to follow the registrations.
const (
	registrationsMin = 100 * time.Millisecond
	registrationsMax = 10 * time.Second
)

// followRegistrations takes this node's registrations from the authority until
// ctx ends. Without the authority those that were known last stay in force.
func (a *agent) followRegistrations(ctx context.Context, conn grpc.ClientConnInterface) error {
	client := capb.NewNodeRegistrationsClient(conn)
	return rpc.Follow(ctx, a.rt.Log, "registrations", registrationsMin, registrationsMax, func(ctx context.Context) (bool, error) { return a.receiveRegistrations(ctx, client) })
}

// receiveRegistrations takes updates from one stream until it ends.
func (a *agent) receiveRegistrations(ctx context.Context, client capb.NodeRegistrationsClient) (worked bool, err error) {
	stream, err := client.WatchRegistrations(ctx, &capb.WatchRegistrationsRequest{Digest: a.attestor.Resume()}, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	for {
		u, err := stream.Recv()
		if err != nil {
			return worked, err
		}
		worked = true
		if err := a.attestor.Apply(ctx, u); err != nil {
			a.rt.Log.WarnContext(ctx, "registrations are left out", slog.Any("error", err))
		}
		if u.GetComplete() {
			// The authority knows them too: what it refused a moment ago it may sign
			// now.
			a.svids.Wake()
		}
	}
}
