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

// jwtKeyRow is a row of `writ certs jwt-keys`.
type jwtKeyRow struct {
	KeyID string `json:"keyId"`
	// State is "signs", "published" (it will sign, or did) or "elsewhere".
	State string     `json:"state"`
	Until *time.Time `json:"until,omitempty"`
}

func jwtKeyRowOf(k *capb.JWTKey) jwtKeyRow {
	row := jwtKeyRow{KeyID: k.GetKid(), State: "published"}
	switch {
	case k.GetActive():
		row.State = "signs"
	case k.GetElsewhere():
		row.State = "elsewhere"
	}
	if end := k.GetUntil(); end != nil {
		t := end.AsTime()
		row.Until = &t
	}
	return row
}

func jwtKeysCommand() *cobra.Command {
	var o output
	var from sourceFlags
	var drop string
	c := &cobra.Command{
		Use:   "jwt-keys [DIR]",
		Short: "List the keys of JWT-SVIDs, or drop one that others may have",
		Long: `List the keys that verify JWT-SVIDs: the one that signs, the next, those whose tokens
may still be valid, and those of other authorities over the same ledger.

With --drop KEYID a key of this authority is taken out at once. What it signed is
refused by whoever has the keys of after that; node agents get them pushed, other
trust domains when they look next. If it is the key that signs, the next one does.
Certificates are not touched.`,
		Example: "  writ certs jwt-keys examples/bookinfo\n  writ certs jwt-keys examples/bookinfo --drop 4a7d1ed414474e4033ac29ccb8653d9b",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			conn, err := from.dial(args)
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			client := capb.NewJWTKeysClient(conn)
			if drop != "" {
				if _, err := client.DropJWTKey(ctx, &capb.DropJWTKeyRequest{Kid: drop}); err != nil {
					return failed(err)
				}
			}
			list, err := client.ListJWTKeys(ctx, &capb.ListJWTKeysRequest{})
			if err != nil {
				return err
			}
			rows := make([]jwtKeyRow, len(list.GetKeys()))
			for i, k := range list.GetKeys() {
				rows[i] = jwtKeyRowOf(k)
			}
			return o.print(cmd.OutOrStdout(), rows, func(w io.Writer) error { return printJWTKeys(w, rows) })
		},
	}
	o.register(c)
	c.Flags().StringVar(&from.socket, "admin", "", "ask the authority with this admin `socket`, unix:///path")
	stateFlag(c, &from.state)
	c.Flags().StringVar(&drop, "drop", "", "take the key with this `id` out of use first")
	return c
}

func printJWTKeys(out io.Writer, rows []jwtKeyRow) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tSTATE\tUNTIL (UTC)")
	for _, r := range rows {
		until := "-"
		if r.Until != nil {
			until = utc(*r.Until)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.KeyID, r.State, until)
	}
	return w.Flush()
}
