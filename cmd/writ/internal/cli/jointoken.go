package cli

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/listen"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// quickConnect finds a socket soon that is not there yet.
func quickConnect() grpc.ConnectParams {
	return grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 500 * time.Millisecond}}
}

func joinTokenCommand() *cobra.Command {
	var socket, trustDomain string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "join-token PATH=FILE...",
		Short: "Make one-time tokens with which node agents and services join",
		Long: `Make one-time join tokens over the authority's admin socket, which only the
authority's own user and root can use, and write each into a file (mode 0600).
PATH is that of the SPIFFE ID, such as writ/pilot or writ/node/NAME. A service
reads its token only when it has no certificate that is still valid.`,
		Example: "  writ certs join-token --admin unix:///run/writ/admin/ca.sock writ/pilot=/run/writ/token/join-token",
		Args:    arguments(1, math.MaxInt, "one PATH=FILE or several"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, ok := listen.Unix(socket); !ok {
				return fmt.Errorf("--admin %q: want unix:///absolute/path, the authority's admin socket", socket)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return joinTokens(ctx, socket, trustDomain, args)
		},
	}
	f := c.Flags()
	f.StringVar(&socket, "admin", "", "the authority's admin `socket`, unix:///path")
	f.StringVar(&trustDomain, "trust-domain", "cluster.local", "the trust `domain`")
	f.DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for the authority to come up")
	return c
}

func joinTokens(ctx context.Context, socket, trustDomain string, wanted []string) error {
	type order struct{ path, file string }
	orders := make([]order, 0, len(wanted))
	for _, w := range wanted {
		path, file, ok := strings.Cut(w, "=")
		if !ok || path == "" || !filepath.IsAbs(file) {
			return fmt.Errorf("%q: want PATH=FILE with an absolute file, such as writ/pilot=/run/writ/token/join-token", w)
		}
		orders = append(orders, order{strings.TrimPrefix(path, "/"), file})
	}
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(quickConnect()))
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, o := range orders {
		resp, err := capb.NewAdminClient(conn).CreateJoinToken(ctx,
			&capb.CreateJoinTokenRequest{SpiffeId: "spiffe://" + trustDomain + "/" + o.path}, grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("join token for %s: %w", o.path, err)
		}
		if err := atomicfile.Write(o.file, []byte(resp.GetToken()+"\n"), 0o600); err != nil {
			return fmt.Errorf("join token for %s: %w", o.path, err)
		}
	}
	return nil
}
