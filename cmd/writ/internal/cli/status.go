package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

const callTimeout = 10 * time.Second

// admin connects to the operator interface of a service of a running mesh.
func admin(dir, state, service string) (*grpc.ClientConn, error) {
	ready, err := stack.Running(dir, state)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(ready.Admin[service], grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func pilotStatus(ctx context.Context, dir, state string) (*pilotpb.GetStatusResponse, error) {
	conn, err := admin(dir, state, "pilot")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return pilotpb.NewStatusClient(conn).GetStatus(ctx, &pilotpb.GetStatusRequest{})
}

func statusCommand() *cobra.Command {
	var o output
	var state string
	c := &cobra.Command{
		Use:   "status [DIR]",
		Short: "Show revisions, proxies and problems of a running mesh",
		Long: `Show which configuration every proxy and service has acknowledged, and what is
wrong with the files as they stand. Exit code 0: everything is live; 1: not; 2:
cannot tell.`,
		Example: "  writ status examples/bookinfo",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := pilotStatus(cmd.Context(), meshDir(args), state)
			if err != nil {
				return err
			}
			if o == "json" {
				data, err := protojson.MarshalOptions{Multiline: true, Indent: "  ", EmitUnpopulated: true}.Marshal(st)
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), string(data))
			} else if err := o.print(cmd.OutOrStdout(), st, func(w io.Writer) error { return printStatus(w, st) }); err != nil {
				return err
			}
			if !healthy(st) {
				return errNo
			}
			return nil
		},
	}
	o.register(c)
	c.Flags().StringVar(&state, "state", "", "the state folder given to `writ up`")
	return c
}

func healthy(st *pilotpb.GetStatusResponse) bool {
	for _, p := range st.GetProblems() {
		if p.GetSeverity() == "error" {
			return false
		}
	}
	if len(st.GetRevisions()) > 0 && st.GetRevisions()[0].GetState() == pilotpb.RevisionState_REVISION_STATE_REJECTED {
		return false
	}
	return stack.Live(st) == nil
}

func printStatus(out io.Writer, st *pilotpb.GetStatusResponse) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REVISION\tSTATE\tWRITTEN\tLIVE AFTER\tWHY")
	for i, r := range st.GetRevisions() {
		if i == 5 {
			break
		}
		after, why := "-", "-"
		if r.GetTimeToLive() != nil {
			after = r.GetTimeToLive().AsDuration().Round(time.Millisecond).String()
		}
		if rej := r.GetRejection(); rej != nil {
			why = fmt.Sprintf("%s refused %s: %s", rej.GetClient(), strings.Join(rej.GetObjects(), ", "), firstLine(rej.GetDetail()))
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", r.GetNumber(), revisionState(r.GetState()), r.GetCreatedAt().AsTime().Local().Format(time.TimeOnly), after, why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nCLIENT\tKIND\tREVISION\tRESOURCES\tLAST ERROR")
	for _, c := range st.GetClients() {
		var n uint32
		for _, k := range c.GetResources() {
			n += k
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", c.GetId(), c.GetKind(), c.GetAckedRevision(), n, dash(firstLine(c.GetLastError())))
	}
	for _, m := range st.GetMissing() {
		fmt.Fprintf(w, "%s\tproxy\tnot connected\t-\t-\n", m)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(st.GetProblems()) > 0 {
		fmt.Fprintln(out, "\nPROBLEMS in the files (the last good state is served):")
	}
	for _, p := range st.GetProblems() {
		fmt.Fprintf(out, "  %s: %s\n", p.GetSeverity(), problemText(p))
	}
	_, err := fmt.Fprintf(out, "\nserving revision %d\n", st.GetServing())
	return err
}

func revisionState(s pilotpb.RevisionState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "REVISION_STATE_"))
}

func problemText(p *pilotpb.Problem) string {
	s := fmt.Sprintf("%s:%d: ", p.GetFile(), p.GetLine())
	if p.GetObject() != "" {
		s += p.GetObject() + ": "
	}
	if p.GetField() != "" {
		s += p.GetField() + ": "
	}
	return s + p.GetMessage()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func waitCommand() *cobra.Command {
	var state string
	var timeout time.Duration
	c := &cobra.Command{
		Use:     "wait [DIR]",
		Short:   "Wait until the configuration on disk is live in every proxy",
		Example: "  writ wait examples/bookinfo --timeout 5s",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conn, err := admin(meshDir(args), state, "pilot")
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			stream, err := pilotpb.NewStatusClient(conn).WatchStatus(ctx, &pilotpb.WatchStatusRequest{})
			if err != nil {
				return err
			}
			for {
				st, err := stream.Recv()
				switch {
				case ctx.Err() != nil:
					return failed(fmt.Errorf("not live within %s", timeout))
				case err != nil:
					return err
				case healthy(st):
					fmt.Fprintf(cmd.OutOrStdout(), "revision %d is live\n", st.GetServing())
					return nil
				}
			}
		},
	}
	c.Flags().StringVar(&state, "state", "", "the state folder given to `writ up`")
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait")
	return c
}

// certificate is a row of `writ certs ls`.
type certificate struct {
	Serial    string    `json:"serial"`
	SPIFFEID  string    `json:"spiffeId"`
	Requester string    `json:"requester"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	IssuedAt  time.Time `json:"issuedAt"`
}

func certsCommand() *cobra.Command {
	c := &cobra.Command{Use: "certs", Short: "Look at the certificates that the authority has issued", Args: cobra.NoArgs}
	var o output
	var state, id string
	var all bool
	ls := &cobra.Command{
		Use:     "ls [DIR]",
		Short:   "List certificates, the live ones unless --all is given",
		Example: "  writ certs ls examples/bookinfo --id spiffe://cluster.local/ns/default/sa/bookinfo-reviews",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conn, err := admin(meshDir(args), state, "ca")
			if err != nil {
				return err
			}
			defer conn.Close()
			rows, err := listCertificates(cmd.Context(), conn, &capb.ListCertificatesRequest{Live: !all, SpiffeId: id})
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), rows, func(w io.Writer) error { return printCertificates(w, rows) })
		},
	}
	o.register(ls)
	ls.Flags().StringVar(&state, "state", "", "the state folder given to `writ up`")
	ls.Flags().StringVar(&id, "id", "", "only certificates of this SPIFFE ID")
	ls.Flags().BoolVar(&all, "all", false, "expired ones too")
	c.AddCommand(ls, joinTokenCommand())
	return c
}

func listCertificates(ctx context.Context, conn *grpc.ClientConn, req *capb.ListCertificatesRequest) ([]certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	stream, err := capb.NewAdminClient(conn).ListCertificates(ctx, req)
	if err != nil {
		return nil, err
	}
	rows := []certificate{}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, err
		}
		rows = append(rows, certificate{
			Serial: r.GetSerial(), SPIFFEID: r.GetSpiffeId(), Requester: r.GetRequester(),
			NotBefore: r.GetNotBefore().AsTime(), NotAfter: r.GetNotAfter().AsTime(), IssuedAt: r.GetIssuedAt().AsTime(),
		})
	}
}

func printCertificates(out io.Writer, rows []certificate) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SERIAL\tSPIFFE ID\tASKED FOR BY\tVALID UNTIL")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Serial, r.SPIFFEID, r.Requester, r.NotAfter.Local().Format(time.DateTime))
	}
	return w.Flush()
}
