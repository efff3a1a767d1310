package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/writ-mesh/writ/cmd/writ/internal/check"
	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

const callTimeout = 10 * time.Second

// admin connects to the operator interface of a service of a running mesh.
func admin(dir, state, service string) (*grpc.ClientConn, error) {
	ready, err := stack.Running(dir, state)
	if err != nil {
		return nil, err
	}
	return dialAdmin(ready.Admin[service])
}

// maxAnswer bounds what a service tells, in bytes: a mesh directory with what its lists
// have from elsewhere, or the status of many proxies.
const maxAnswer = 256 << 20

func dialAdmin(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
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
		Short: "Show what is live in a running mesh, and what is wrong",
		Long: `Show which revision of the configuration every Envoy and service has, and what is
wrong with the files and the programs as they are now.
Exit code 0: everything is live and runs; 1: not; 2: cannot tell.`,
		Example: "  writ status examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := meshDir(args)
			st, err := pilotStatus(cmd.Context(), dir, state)
			if err != nil {
				return err
			}
			programs, err := stack.WorkloadProblems(dir, state)
			if err != nil {
				return err
			}
			bundles, err := stack.BundleProblems(dir, state)
			if err != nil {
				return err
			}
			for _, p := range append(programs, bundles...) {
				st.Problems = append(st.Problems, problemOf(p))
			}
			st.Problems = append(st.Problems, agentProblems(cmd.Context(), dir, state)...)
			declareQuotas(cmd.Context(), dir, state, st)
			if o == "json" {
				data, err := protojson.MarshalOptions{Multiline: true, Indent: "  ", EmitUnpopulated: true}.Marshal(st)
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), string(data))
			} else if err := o.print(cmd.OutOrStdout(), st, func(w io.Writer) error { return printStatus(w, dir, st) }); err != nil {
				return err
			}
			if !healthy(st) {
				return errNo
			}
			return nil
		},
	}
	o.register(c)
	stateFlag(c, &state)
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

func printStatus(out io.Writer, dir string, st *pilotpb.GetStatusResponse) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REVISION\tSTATE\tWRITTEN\tLIVE AFTER\tREFUSED")
	for i, r := range st.GetRevisions() {
		if i == 5 {
			break
		}
		after, why := "-", "-"
		if r.GetTimeToLive() != nil {
			after = r.GetTimeToLive().AsDuration().Round(time.Millisecond).String()
		}
		if rej := r.GetRejection(); rej != nil {
			why = fmt.Sprintf("by %s: %s: %s", clientName(rej.GetClient()), strings.Join(rej.GetObjects(), ", "), firstLine(rej.GetDetail()))
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
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", c.GetId(), c.GetKind(), c.GetAckedRevision(), n, check.Dash(firstLine(c.GetLastError())))
	}
	for _, m := range st.GetMissing() {
		fmt.Fprintf(w, "%s\tproxy\tnot connected\t-\t-\n", m)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	printRego(out, st.GetRego())
	printKeySets(out, st.GetKeySets(), time.Now())
	printQuotas(out, st.GetQuotas())
	for _, kind := range []struct{ severity, title string }{
		{"error", "\nERRORS (what has one is not in force as it stands in the file)"},
		{"warning", "\nWARNINGS (what has one is in force)"},
	} {
		title := kind.title
		for _, p := range st.GetProblems() {
			if p.GetSeverity() != kind.severity {
				continue
			}
			if title != "" {
				fmt.Fprintln(out, title)
				title = ""
			}
			fmt.Fprintln(out, "  "+problemLine(dir, p))
		}
	}
	if r := st.GetRevocations(); r.GetCertificates()+r.GetIdentities() > 0 {
		fmt.Fprintf(out, "\nrevoked: %s and %s (list %d)\n", count(int(r.GetCertificates()), "certificate"), identities(r.GetIdentities()), r.GetSequence())
	}
	_, err := fmt.Fprintf(out, "\nserving revision %d\n", st.GetServing())
	return err
}

// printRego says where the RegoPolicies are decided.
func printRego(out io.Writer, all []*pilotpb.RegoPlacement) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(out, "\nREGO POLICIES (where they are decided)")
	for _, p := range all {
		fmt.Fprintf(out, "  %s: %s (%s)\n", p.GetPolicy(), p.GetRuns(), proxies(p.GetProxies()))
		for _, r := range p.GetRemote() {
			place := r.GetFile()
			if r.GetLine() > 0 {
				place = fmt.Sprintf("%s:%d", place, r.GetLine())
			}
			fmt.Fprintf(out, "    %s: %s\n", strings.TrimSpace(place+" "+r.GetExpression()), r.GetWhy())
		}
	}
}

func proxies(n uint32) string {
	if n == 1 {
		return "1 proxy"
	}
	return fmt.Sprintf("%d proxies", n)
}

// clientName is what people call a client: the name and the namespace of a proxy's
// xDS node id "sidecar~IP~NAME.NAMESPACE~DOMAIN", the name in "service~NAME".
func clientName(id string) string {
	switch parts := strings.Split(id, "~"); len(parts) {
	case 4:
		return parts[2]
	case 2:
		return parts[1]
	}
	return id
}

func revisionState(s pilotpb.RevisionState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "REVISION_STATE_"))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// waited is what writ wait tells.
type waited struct {
	Live bool `json:"live"`
	// Revision is what Envoys are given now.
	Revision string `json:"revision"`
	// Waiting is what is still to come, or what keeps it from coming.
	Waiting []string `json:"waiting,omitempty"`
	// stuck says that nothing will come unless somebody does something.
	stuck bool
}

// why tells what is still to come, in few lines.
func (w waited) why() string {
	const most = 5
	lines := w.Waiting
	if n := len(lines); n > most {
		lines = append(lines[:most:most], fmt.Sprintf("and %d more", n-most))
	}
	return strings.Join(lines, "\n  ")
}

// placedLook is how often it is seen how far writ up has come.
const placedLook = 25 * time.Millisecond

func waitCommand() *cobra.Command {
	var o output
	var state string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "wait [DIR]",
		Short: "Wait until the files as they are now are live",
		Long: `Wait until the files as they are now are live: workloads and gateways were started
and ended as they say, programs listen, and every Envoy has the configuration.
Exit code 0: all is; 1: not within the time, or a workload cannot be started; 2: cannot tell.`,
		Example: "  writ wait examples/bookinfo --timeout 5s",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.known(); err != nil {
				return err
			}
			dir := meshDir(args)
			conn, err := admin(dir, state, "pilot")
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			w, err := waitLive(ctx, dir, state, pilotpb.NewStatusClient(conn))
			if err != nil {
				return err
			}
			err = o.print(cmd.OutOrStdout(), w, func(out io.Writer) error {
				if w.Live {
					fmt.Fprintf(out, "revision %s is live\n", w.Revision)
				}
				return nil
			})
			switch {
			case err != nil || w.Live:
			case w.stuck:
				return failed(fmt.Errorf("not live, and waiting does not help:\n  %s", w.why()))
			default:
				return failed(fmt.Errorf("not live within %s (`writ status %s` says more):\n  %s", timeout, dir, w.why()))
			}
			return err
		},
	}
	o.register(c)
	stateFlag(c, &state)
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait")
	return c
}

// waitLive waits until all is live, at most until ctx ends.
func waitLive(ctx context.Context, dir, state string, pilot pilotpb.StatusClient) (waited, error) {
	// Without pilot nothing can be told.
	w, err := watchLive(ctx, dir, pilot, func(*pilotpb.GetStatusResponse) bool { return true })
	if err != nil || ctx.Err() != nil {
		return w, err
	}
	tick := time.NewTicker(placedLook)
	defer tick.Stop()
	for {
		pending, problems, err := stack.Placed(dir, state)
		if err != nil {
			return w, err
		}
		if len(problems) > 0 {
			w.Waiting, w.stuck = nil, true
			for _, p := range problems {
				w.Waiting = append(w.Waiting, problemLine(dir, problemOf(p)))
			}
			w.Live = false
			return w, nil
		}
		if len(pending) == 0 {
			break
		}
		w.Live, w.Waiting = false, pending
		select {
		case <-ctx.Done():
			return w, nil
		case <-tick.C:
		}
	}
	// Asked anew: what it said before may be of the time before the workloads came.
	return watchLive(ctx, dir, pilot, healthy)
}

// watchLive waits until pilot's status is as wanted.
func watchLive(ctx context.Context, dir string, pilot pilotpb.StatusClient, wanted func(*pilotpb.GetStatusResponse) bool) (waited, error) {
	// pilot is not told of the deadline: it would end the stream a moment before, as if it
	// had nothing to tell.
	asked, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	w := waited{Waiting: []string{"pilot has not told its status"}}
	stream, err := pilot.WatchStatus(asked, &pilotpb.WatchStatusRequest{})
	switch {
	case ctx.Err() != nil:
		return w, nil //nolint:nilerr // as below
	case err != nil:
		return w, err
	}
	for {
		st, err := stream.Recv()
		switch {
		case ctx.Err() != nil:
			return w, nil //nolint:nilerr // it is not live, and that is the answer
		case err != nil:
			return w, err
		}
		w = waited{Live: healthy(st), Revision: strconv.FormatUint(st.GetServing(), 10)}
		if !w.Live {
			w.Waiting = notLive(dir, st)
		}
		if wanted(st) {
			return w, nil
		}
	}
}

// notLive says why a mesh is not healthy.
func notLive(dir string, st *pilotpb.GetStatusResponse) []string {
	var out []string
	for _, p := range st.GetProblems() {
		if p.GetSeverity() == "error" {
			out = append(out, problemLine(dir, p))
		}
	}
	if r := st.GetRevisions(); len(r) > 0 && r[0].GetState() == pilotpb.RevisionState_REVISION_STATE_REJECTED {
		rej := r[0].GetRejection()
		out = append(out, fmt.Sprintf("revision %d was refused by %s: %s: %s", r[0].GetNumber(), clientName(rej.GetClient()), strings.Join(rej.GetObjects(), ", "), firstLine(rej.GetDetail())))
	}
	if err := stack.Live(st); err != nil {
		out = append(out, err.Error())
	}
	return out
}
