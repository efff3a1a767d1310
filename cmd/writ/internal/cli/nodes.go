package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/atomicfile"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func nodesCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "nodes",
		Short:   "Let nodes back in",
		Example: "  writ nodes readmit n1 --admin unix:///run/writ/admin/ca.sock",
		Args:    arguments(0, 0, "a sub-command"),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(readmitCommand())
	return c
}

// readmission is what `writ nodes readmit` asks for.
type readmission struct {
	node, file string
	ttl        time.Duration
}

func readmitCommand() *cobra.Command {
	var at caSocket
	var r readmission
	c := &cobra.Command{
		Use:   "readmit NODE [DIR]",
		Short: "Let a node back in whose certificate has expired and whose proof is used up",
		Long: `Let a node back in whose own certificate has expired, say because its machine was
away for days, and that has no proof left but a used join token. A new one-time
token is written to --token-file, or printed. The node agent looks into its
credential.token_file at every try, a few seconds apart, and goes on by itself as
soon as the token is there; until then it serves what has not expired.
The mesh of writ up lets its own node back in without this.`,
		Example: "  writ nodes readmit n1 --admin unix:///run/writ/admin/ca.sock | ssh n1 'umask 077; cat >/var/lib/writ/join-token'",
		Args:    arguments(1, 2, "the node, and the mesh directory unless it is the current one or --admin is given"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.node = args[0]
			if r.file != "" && !filepath.IsAbs(r.file) {
				return fmt.Errorf("--token-file %q: want an absolute path, the credential.token_file of the node agent", r.file)
			}
			conn, err := at.dial(args[1:])
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			return readmit(ctx, capb.NewAdminClient(conn), r, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	at.register(c)
	f := c.Flags()
	f.StringVar(&r.file, "token-file", "", "write the token to this `file` (mode 0600) instead of printing it")
	f.DurationVar(&r.ttl, "ttl", 0, "how long the token may be used (default join_token_ttl of the authority)")
	return c
}

func readmit(ctx context.Context, ca capb.AdminClient, r readmission, stdout, stderr io.Writer) error {
	bundle, err := ca.GetBundle(ctx, &capb.GetBundleRequest{})
	if err != nil {
		return err
	}
	req := &capb.CreateJoinTokenRequest{SpiffeId: "spiffe://" + bundle.GetTrustDomain() + "/writ/node/" + r.node}
	if r.ttl != 0 {
		req.Ttl = durationpb.New(r.ttl)
	}
	resp, err := ca.CreateJoinToken(ctx, req)
	if err != nil {
		return fmt.Errorf("node %s: %w", r.node, err)
	}
	until := ""
	if end := resp.GetExpiresAt(); end != nil {
		until = fmt.Sprintf(", until %s UTC", utc(end.AsTime()))
	}
	if r.file == "" {
		fmt.Fprintf(stderr, "writ: put this into credential.token_file of node %s; it is good once%s\n", r.node, until)
		fmt.Fprintln(stdout, resp.GetToken())
		return nil
	}
	if err := atomicfile.Write(r.file, []byte(resp.GetToken()+"\n"), 0o600); err != nil {
		return fmt.Errorf("node %s: %w", r.node, err)
	}
	fmt.Fprintf(stdout, "node %s may join once by %s%s\n", r.node, r.file, until)
	return nil
}
