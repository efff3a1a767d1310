package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/listen"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

func explainCommand() *cobra.Command {
	var o output
	var src meshSource
	var a asked
	c := &cobra.Command{
		Use:     "explain [DIR]",
		Short:   "Tell what becomes of a request, and why",
		Long:    explainLong,
		Example: "  writ explain --from productpage --to ratings --path /ratings/1 examples/bookinfo\n  writ explain identity --pid 4711 examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			return explainRequest(cmd.Context(), cmd.OutOrStdout(), &o, &src, &a, args)
		},
	}
	o.register(c)
	src.register(c)
	a.registerCaller(c)
	a.registerRequest(c)
	c.AddCommand(explainIdentityCommand())
	return c
}

// explained is the answer of `writ explain identity`.
type explained struct {
	Node          string    `json:"node"`
	PID           int32     `json:"pid"`
	SPIFFEID      string    `json:"spiffeId,omitempty"`
	By            string    `json:"by,omitempty"`
	Proxy         string    `json:"proxy,omitempty"`
	Refusal       string    `json:"refusal,omitempty"`
	Facts         []string  `json:"facts"`
	Unread        []string  `json:"unread,omitempty"`
	Nearest       []nearest `json:"nearest,omitempty"`
	Registrations uint32    `json:"registrations"`
}

type nearest struct {
	ID       string   `json:"id"`
	SPIFFEID string   `json:"spiffeId"`
	Facts    []string `json:"facts"`
	Missing  []string `json:"missing,omitempty"`
}

func explainIdentityCommand() *cobra.Command {
	var o output
	var state, socket string
	var pid int32
	c := &cobra.Command{
		Use:   "identity [DIR]",
		Short: "Tell which identity a process gets from its node agent, and why, or why none",
		Long: `Tell which identity a process gets from its node agent: the facts that the agent
sees, by what it recognizes the process, and which registrations come nearest with
what they lack. Nothing is issued. Asked on the node itself, over the agent's
admin socket, as the user that runs the agent or as root.
Exit code 0: it gets one; 1: none; 2: cannot tell.`,
		Example: "  writ explain identity --pid 4711 examples/bookinfo\n  writ explain identity --pid 4711 --admin unix:///run/writ/nodeagent-admin.sock",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			if pid <= 0 {
				return errors.New("name a process: --pid N")
			}
			conn, err := adminSocket(args, state, socket, "nodeagent")
			if err != nil {
				return err
			}
			defer conn.Close()
			x, err := explainIdentity(cmd.Context(), conn, pid)
			if err != nil {
				return err
			}
			if err := o.print(cmd.OutOrStdout(), x, func(w io.Writer) error { return printExplained(w, x) }); err != nil {
				return err
			}
			if x.SPIFFEID == "" {
				return errNo
			}
			return nil
		},
	}
	o.register(c)
	stateFlag(c, &state)
	c.Flags().Int32Var(&pid, "pid", 0, "the `process`, as this machine numbers it")
	c.Flags().StringVar(&socket, "admin", "", "the node agent's admin `socket`, unix:///path, instead of a mesh of writ up")
	return c
}

// adminSocket connects to the operator interface of a service: at socket if one
// is named, else that of the mesh of writ up in a directory.
func adminSocket(args []string, state, socket, service string) (*grpc.ClientConn, error) {
	if socket == "" {
		return admin(meshDir(args), state, service)
	}
	if _, ok := listen.Unix(socket); !ok {
		return nil, fmt.Errorf("--admin %q: want unix:///absolute/path", socket)
	}
	return dialAdmin(socket)
}

func explainIdentity(ctx context.Context, conn *grpc.ClientConn, pid int32) (*explained, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := nodeagentpb.NewAdminClient(conn).ExplainIdentity(ctx, &nodeagentpb.ExplainIdentityRequest{Pid: pid})
	if status.Code(err) == codes.NotFound {
		return nil, fmt.Errorf("there is no process %d, or the node agent may not look at it", pid)
	}
	if err != nil {
		return nil, err
	}
	x := &explained{
		Node: r.GetNode(), PID: r.GetPid(), SPIFFEID: r.GetSpiffeId(), By: r.GetBy(), Proxy: r.GetProxyId(), Refusal: r.GetRefusal(),
		Facts: slices.Concat([]string{}, r.GetFacts()), Unread: r.GetUnread(), Registrations: r.GetRegistrations(),
	}
	for _, n := range r.GetNearest() {
		x.Nearest = append(x.Nearest, nearest{ID: n.GetId(), SPIFFEID: n.GetSpiffeId(), Facts: n.GetFacts(), Missing: n.GetMissing()})
	}
	return x, nil
}

func printExplained(w io.Writer, x *explained) error {
	switch {
	case x.SPIFFEID == "":
		fmt.Fprintf(w, "process %d gets no identity on node %s: %s\n", x.PID, x.Node, x.Refusal)
	case x.By == "process":
		fmt.Fprintf(w, "process %d is %s on node %s: its process was registered for the proxy %s\n", x.PID, x.SPIFFEID, x.Node, clientName(x.Proxy))
	case x.By == "user":
		fmt.Fprintf(w, "process %d is %s on node %s: its user is that of the proxy %s\n", x.PID, x.SPIFFEID, x.Node, clientName(x.Proxy))
	default:
		fmt.Fprintf(w, "process %d is %s on node %s, by %s\n", x.PID, x.SPIFFEID, x.Node, x.By)
	}
	fmt.Fprintln(w, "\nSEEN")
	for _, f := range x.Facts {
		fmt.Fprintln(w, "  "+f)
	}
	if len(x.Unread) > 0 {
		fmt.Fprintln(w, "\nNOT SEEN")
		for _, u := range x.Unread {
			fmt.Fprintln(w, "  "+u)
		}
	}
	fmt.Fprintf(w, "\nNEAREST of %d registrations on this node\n", x.Registrations)
	for _, n := range x.Nearest {
		verdict := "fulfilled"
		if len(n.Missing) > 0 {
			verdict = "wants " + strings.Join(n.Missing, ", ")
		}
		fmt.Fprintf(w, "  %s  %s  %s\n", n.ID, n.SPIFFEID, verdict)
	}
	if len(x.Nearest) == 0 {
		fmt.Fprintln(w, "  none has a fact of this process")
	}
	return nil
}
