package ca

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/ca/placement"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/xdsclient"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// pilotBackoff is short: pilot restarts within a second, and workloads wait for
// their placement.
var pilotBackoff = backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

// followPlacements keeps table as pilot says, and on disk for when pilot is away.
func followPlacements(c Config, a *Authority, own *own, table *placement.Table) (func(context.Context) error, error) {
	pilot, err := identity.Service(a.td, identity.Pilot)
	if err != nil {
		return nil, err
	}
	creds := credentials.NewTLS(own.clientTLS(pilot))
	if _, ok := listen.Unix(c.Pilot); ok {
		creds = insecure.NewCredentials() // the socket's mode guards it
	}
	conn, err := grpc.NewClient(c.Pilot, grpc.WithTransportCredentials(creds),
		grpc.WithDisableServiceConfig(), // nobody has its TXT record, and looking for it takes time
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pilotBackoff, MinConnectTimeout: 2 * time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(c.State, placementFile)
	return func(ctx context.Context) error {
		defer func() { _ = conn.Close() }()
		return xdsclient.Run(ctx, conn, own.id.String(), a.log, xdsclient.Subscription{
			Message: (*configpb.NodePlacement)(nil),
			Apply:   func(res map[string]proto.Message) error { return a.applyPlacements(ctx, path, table, res) },
		})
	}, nil
}

func (a *Authority) applyPlacements(ctx context.Context, path string, table *placement.Table, res map[string]proto.Message) error {
	set, err := placement.FromResources(res, a.td)
	if err != nil {
		a.metrics.placements.WithLabelValues("refused").Inc()
		return err
	}
	table.Replace(set)
	a.metrics.placements.WithLabelValues("ok").Inc()
	if err := placement.Save(path, set, a.td); err != nil {
		// They are in force; only a restart while pilot is away would miss them.
		a.log.WarnContext(ctx, "placements cannot be kept on disk", slog.Any("error", err))
	}
	return nil
}
