package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// reasonPrefix is that of the reasons' names in the protocol.
const reasonPrefix = "REVOCATION_REASON_"

// reasonName is a reason as users write it: key-compromise.
func reasonName(r capb.RevocationReason) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(r.String(), reasonPrefix), "_", "-"))
}

// reasonNames are all of them, in the order of their numbers.
func reasonNames() []string {
	numbers := make([]int32, 0, len(capb.RevocationReason_name))
	for n := range capb.RevocationReason_name {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	names := make([]string, len(numbers))
	for i, n := range numbers {
		names[i] = reasonName(capb.RevocationReason(n))
	}
	return names
}

func parseReason(text string) (capb.RevocationReason, error) {
	for n := range capb.RevocationReason_name {
		if r := capb.RevocationReason(n); reasonName(r) == text {
			return r, nil
		}
	}
	return 0, fmt.Errorf("--reason %q: want one of %s", text, strings.Join(reasonNames(), ", "))
}

// isIdentity tells a SPIFFE ID from a serial number.
func isIdentity(subject string) bool { return strings.Contains(subject, "://") }

// revokedRow is a row of `writ certs revocations`.
type revokedRow struct {
	Serial    string     `json:"serial,omitempty"`
	SPIFFEID  string     `json:"spiffeId,omitempty"`
	Authority string     `json:"authority,omitempty"`
	SHA256    string     `json:"sha256,omitempty"`
	Reason    string     `json:"reason"`
	RevokedAt time.Time  `json:"revokedAt"`
	Actor     string     `json:"actor,omitempty"`
	NotAfter  *time.Time `json:"notAfter,omitempty"`
	Sequence  uint64     `json:"sequence"`
}

func revokedRowOf(r *capb.Revocation) revokedRow {
	row := revokedRow{
		Serial: r.GetSerial(), SPIFFEID: r.GetSpiffeId(), SHA256: r.GetSha256(), Reason: reasonName(r.GetReason()),
		RevokedAt: r.GetRevokedAt().AsTime(), Actor: r.GetActor(), Sequence: r.GetSequence(),
	}
	if row.Serial == "" && row.SPIFFEID == "" {
		row.Authority = r.GetAuthority()
	}
	if end := r.GetNotAfter(); end != nil {
		t := end.AsTime()
		row.NotAfter = &t
	}
	return row
}

// subject is what a revocation is of, for people.
func (r revokedRow) subject() string {
	switch {
	case r.Serial != "":
		return "certificate " + r.Serial + " of " + r.SPIFFEID
	case r.Authority != "":
		return "authority " + r.Authority
	}
	return "identity " + r.SPIFFEID
}

func revokeCommand() *cobra.Command {
	var o output
	var state, reason string
	c := &cobra.Command{
		Use:   "revoke SERIAL|SPIFFE-ID [DIR]",
		Short: "Revoke a certificate, or all certificates of an identity",
		Long: `Revoke a certificate by its serial number, or a whole identity by its SPIFFE ID.
Envoys refuse a revoked certificate in new connections, and in requests on those that are open already; TCP connections to
ports with mutual TLS are closed, also those of others, who connect again. A workload whose certificate is revoked gets
another one at once; one whose identity is revoked gets none until writ certs unrevoke.
Only the authority's own user and root may do this. What is revoked is in the authority's ledger before the command ends.`,
		Example: "  writ certs revoke 4a7d1ed414474e4033ac29ccb8653d9b examples/bookinfo --reason key-compromise\n" +
			"  writ certs revoke spiffe://cluster.local/ns/default/sa/bookinfo-reviews examples/bookinfo",
		Args: arguments(1, 2, "a serial number or a SPIFFE ID, and the mesh directory or none for the current one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			why, err := parseReason(reason)
			if err != nil {
				return err
			}
			req := &capb.RevokeRequest{Reason: why, Subject: &capb.RevokeRequest_Serial{Serial: args[0]}}
			if isIdentity(args[0]) {
				req.Subject = &capb.RevokeRequest_SpiffeId{SpiffeId: args[0]}
			}
			var resp *capb.RevokeResponse
			err = withRevocations(cmd.Context(), meshDir(args[1:]), state, func(ctx context.Context, ca capb.RevocationsClient) (err error) {
				resp, err = ca.Revoke(ctx, req)
				return err
			})
			if err != nil {
				return err
			}
			row := revokedRowOf(resp.GetRevocation())
			return o.print(cmd.OutOrStdout(), row, func(w io.Writer) error {
				if resp.GetAlready() {
					_, err := fmt.Fprintf(w, "the %s was revoked before, at %s UTC (%s)\n", row.subject(), utc(row.RevokedAt), row.Reason)
					return err
				}
				_, err := fmt.Fprintf(w, "the %s is revoked (%s), by list %d\n", row.subject(), row.Reason, resp.GetSequence())
				return err
			})
		},
	}
	o.register(c)
	stateFlag(c, &state)
	c.Flags().StringVar(&reason, "reason", reasonName(0), "why: `one` of "+strings.Join(reasonNames(), ", "))
	return c
}

func unrevokeCommand() *cobra.Command {
	var state string
	c := &cobra.Command{
		Use:     "unrevoke SERIAL|SPIFFE-ID [DIR]",
		Short:   "Take a revocation back",
		Example: "  writ certs unrevoke spiffe://cluster.local/ns/default/sa/bookinfo-reviews examples/bookinfo",
		Args:    arguments(1, 2, "a serial number or a SPIFFE ID, and the mesh directory or none for the current one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &capb.UnrevokeRequest{Subject: &capb.UnrevokeRequest_Serial{Serial: args[0]}}
			if isIdentity(args[0]) {
				req.Subject = &capb.UnrevokeRequest_SpiffeId{SpiffeId: args[0]}
			}
			return withRevocations(cmd.Context(), meshDir(args[1:]), state, func(ctx context.Context, ca capb.RevocationsClient) error {
				resp, err := ca.Unrevoke(ctx, req)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "the %s is no longer revoked, by list %d\n", revokedRowOf(resp.GetRevocation()).subject(), resp.GetSequence())
				return err
			})
		},
	}
	stateFlag(c, &state)
	return c
}

func revocationsCommand() *cobra.Command {
	var o output
	var state string
	c := &cobra.Command{
		Use:     "revocations [DIR]",
		Short:   "List what is revoked",
		Long:    "List the certificates, identities and authorities that are revoked. Certificates that have expired are not listed; the ledger has them (writ certs export).",
		Example: "  writ certs revocations examples/bookinfo\n  writ certs revocations examples/bookinfo -o json",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			var list *capb.RevocationList
			err := withRevocations(cmd.Context(), meshDir(args), state, func(ctx context.Context, ca capb.RevocationsClient) (err error) {
				list, err = ca.ListRevocations(ctx, &capb.ListRevocationsRequest{})
				return err
			})
			if err != nil {
				return err
			}
			rows := make([]revokedRow, len(list.GetRevocations()))
			for i, r := range list.GetRevocations() {
				rows[i] = revokedRowOf(r)
			}
			if err := o.print(cmd.OutOrStdout(), rows, func(w io.Writer) error { return printRevocations(w, rows) }); err != nil {
				return err
			}
			if p := list.GetProblem(); p != "" {
				return failed(errors.New("the certificate revocation lists are not up to date: " + p))
			}
			return nil
		},
	}
	o.register(c)
	stateFlag(c, &state)
	return c
}

func printRevocations(out io.Writer, rows []revokedRow) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out, "nothing is revoked")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REVOKED AT (UTC)\tREASON\tBY\tIDENTITY\tSERIAL")
	for _, r := range rows {
		id, serial := r.SPIFFEID, r.Serial
		if serial == "" {
			serial = "all"
		}
		if r.Authority != "" {
			id = "authority " + r.Authority
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", utc(r.RevokedAt), r.Reason, r.Actor, id, serial)
	}
	return w.Flush()
}

// withRevocations calls the authority of a running mesh.
func withRevocations(ctx context.Context, dir, state string, call func(context.Context, capb.RevocationsClient) error) error {
	conn, err := admin(dir, state, "ca")
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return call(ctx, capb.NewRevocationsClient(conn))
}

// agentProblems says if the node agent cannot use the newest revocation lists, or saw
// another ledger than the authority's of now. Without the agent it is unknown; the rest
// of a status is told.
func agentProblems(ctx context.Context, dir, state string) []*pilotpb.Problem {
	conn, err := admin(dir, state, "nodeagent")
	if err != nil {
		return nil
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	st, err := nodeagentpb.NewAdminClient(conn).GetStatus(ctx, &nodeagentpb.GetStatusRequest{})
	if err != nil {
		return nil
	}
	return problemsOf(st)
}

func problemsOf(st *nodeagentpb.GetStatusResponse) (out []*pilotpb.Problem) {
	if strings.HasPrefix(st.GetRevocation(), "rejected") {
		out = append(out, &pilotpb.Problem{Severity: "warning", Message: "node " + st.GetNode() + ": revocation: " + st.GetRevocation()})
	}
	switch l := st.GetLedger(); {
	case strings.HasPrefix(l, "CONTRADICTION"):
		out = append(out, &pilotpb.Problem{Severity: "error", Message: "node " + st.GetNode() + ": the authority's ledger: " + l})
	case strings.Contains(l, "restored from a backup"):
		out = append(out, &pilotpb.Problem{Severity: "warning", Message: "node " + st.GetNode() + ": the authority's ledger: " + l})
	}
	return out
}

// identities gives "1 identity", "2 identities".
func identities(n uint32) string {
	if n == 1 {
		return "1 identity"
	}
	return fmt.Sprintf("%d identities", n)
}
