package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// revokeRootTimeout is more than the authority takes to drop a root.
const revokeRootTimeout = 30 * time.Second

// revokedRoot is the answer of `writ roots revoke`.
type revokedRoot struct {
	Authority string    `json:"authority"`
	Reason    string    `json:"reason"`
	RevokedAt time.Time `json:"revokedAt"`
	Sequence  uint64    `json:"sequence"`
	// Already: it was revoked before.
	Already bool `json:"already,omitempty"`
	// Active is the root that signs now.
	Active string `json:"active"`
	// Behind have not said that they have the bundle without the root.
	Behind []string `json:"behind"`
}

func revokeRootCommand() *cobra.Command {
	var o output
	var at caSocket
	var reason string
	req := new(capb.RevokeRootRequest)
	c := &cobra.Command{
		Use:   "revoke AUTHORITY [DIR]",
		Short: "Revoke a root whose key may be in other hands, and everything under it",
		Long: `Revoke a root whose key may be in other hands: it goes out of the trust bundle at
once, waiting for nobody; if it signs, a new root takes its place in the same step.
From then on nobody takes a certificate under it in a new connection, forged or not,
services of Writ end their connections with such, and Envoys replace theirs: HTTP
connections with mutual TLS and TCP connections to ports with mutual TLS end within
Envoy's drain time, those of innocents too, who connect again with new certificates.
AUTHORITY is a key id as in writ roots, or its first eight digits or more; one that
was dropped before may be named too, to end the connections that it has left.`,
		Example: "  writ roots revoke 4a7d1ed41447 examples/bookinfo",
		Args:    arguments(1, 2, "the key id of a root, and the mesh directory or none for the current one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			why, err := parseReason(reason)
			if err != nil {
				return err
			}
			req.KeyId, req.Reason = args[0], why
			conn, err := at.dial(args[1:])
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), revokeRootTimeout)
			defer cancel()
			resp, err := capb.NewRootsClient(conn).RevokeRoot(ctx, req)
			if err != nil {
				return refusedRotation(err)
			}
			r := resp.GetRevocation()
			v := revokedRoot{
				Authority: r.GetAuthority(), Reason: reasonName(r.GetReason()), RevokedAt: r.GetRevokedAt().AsTime(), Sequence: resp.GetSequence(),
				Already: resp.GetAlready(), Active: resp.GetActive(), Behind: append([]string{}, resp.GetBehind()...),
			}
			return o.print(cmd.OutOrStdout(), v, func(w io.Writer) error { return printRevokedRoot(w, v) })
		},
	}
	o.register(c)
	at.register(c)
	c.Flags().StringSliceVar(&req.Replicas, "replica", nil, "hand the key of the root that takes its place to the authority over the same ledger with this `id` only, or to \"none\"; with several authorities name them")
	c.Flags().StringVar(&reason, "reason", reasonName(capb.RevocationReason_REVOCATION_REASON_CA_COMPROMISE), "why: `one` of "+strings.Join(reasonNames(), ", "))
	return c
}

func printRevokedRoot(w io.Writer, v revokedRoot) error {
	var b strings.Builder
	if v.Already {
		fmt.Fprintf(&b, "the authority %s was revoked before, at %s UTC (%s)\n", v.Authority, utc(v.RevokedAt), v.Reason)
	} else {
		fmt.Fprintf(&b, "the authority %s is revoked (%s), by list %d: nobody trusts it any more\n", v.Authority, v.Reason, v.Sequence)
	}
	fmt.Fprintf(&b, "the root %s signs\n", short(v.Active))
	for _, who := range v.Behind {
		fmt.Fprintf(&b, "  %s has not said yet that it has the new trust bundle\n", who)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
