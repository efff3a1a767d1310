package cli

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// replicaRow is one authority in the answer of `writ roots replicas`.
type replicaRow struct {
	ID    string    `json:"id"`
	Host  string    `json:"host"`
	Since time.Time `json:"since"`
	// Asks: it has no key of the root, and asks for it.
	Asks bool `json:"asks,omitempty"`
	Self bool `json:"self,omitempty"`
}

func replicasCommand() *cobra.Command {
	var o output
	var at caSocket
	c := &cobra.Command{
		Use:   "replicas [DIR]",
		Short: "Show the authorities over the same ledger, and which ask to be one",
		Args:  anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAuthority(cmd, at, args, capb.NewReplicasClient, func(ctx context.Context, replicas capb.ReplicasClient) error {
				resp, err := replicas.ListReplicas(ctx, &capb.ListReplicasRequest{})
				if err != nil {
					return err
				}
				rows := []replicaRow{}
				for _, r := range resp.GetReplicas() {
					rows = append(rows, replicaRow{ID: r.GetId(), Host: r.GetHost(), Since: r.GetSince().AsTime(), Asks: r.GetAsks(), Self: r.GetSelf()})
				}
				return o.print(cmd.OutOrStdout(), rows, func(out io.Writer) error { return printReplicas(out, rows) })
			})
		},
	}
	o.register(c)
	at.register(c)
	return c
}

func printReplicas(out io.Writer, rows []replicaRow) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ID\tHOST\tSINCE\t")
	for _, r := range rows {
		note := ""
		switch {
		case r.Asks:
			note = "asks for the key: writ roots admit " + r.ID
		case r.Self:
			note = "this one"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.ID, r.Host, utc(r.Since), note)
	}
	return w.Flush()
}

func admitCommand() *cobra.Command {
	var at caSocket
	c := &cobra.Command{
		Use:   "admit ID [DIR]",
		Short: "Make another authority over the same ledger one that signs",
		Long: `Hand the keys of the roots over to an authority over the same ledger that was started
without them and waits. It says its ID in its log: compare it there, since whoever gets
the keys is the authority.`,
		Example: "  writ roots replicas --admin unix:///run/writ/ca.sock\n  writ roots admit 1f2e3d4c5b6a798877665544 --admin unix:///run/writ/ca.sock",
		Args:    arguments(1, 2, "the ID of a replica"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAuthority(cmd, at, args[1:], capb.NewReplicasClient, func(ctx context.Context, replicas capb.ReplicasClient) error {
				if _, err := replicas.AdmitReplica(ctx, &capb.AdmitReplicaRequest{Id: args[0]}); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "replica %s is given the keys of the roots\n", args[0])
				return err
			})
		},
	}
	at.register(c)
	return c
}

func renewMemberCommand() *cobra.Command {
	var at caSocket
	c := &cobra.Command{
		Use:   "renew-member NAME [DIR]",
		Short: "Let a member of the ledger's etcd cluster that lost its data begin anew",
		Long: `Put a member of the cluster in which the authorities have their ledger out of it and in
again. It has lost its data, and gets everything from the others when it is started. Its
name is that of the configuration.`,
		Example: "  writ roots renew-member ca-3 --admin unix:///run/writ/ca.sock",
		Args:    arguments(1, 2, "the name of a member"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAuthority(cmd, at, args[1:], capb.NewReplicasClient, func(ctx context.Context, replicas capb.ReplicasClient) error {
				if _, err := replicas.RenewMember(ctx, &capb.RenewMemberRequest{Name: args[0]}); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "member %s may be started with an empty directory\n", args[0])
				return err
			})
		},
	}
	at.register(c)
	return c
}
