package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/fact"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// registered is a row of `writ certs registrations`.
type registered struct {
	ID       string `json:"id"`
	SPIFFEID string `json:"spiffeId"`
	// Node is empty for every node.
	Node      string    `json:"node,omitempty"`
	Facts     []string  `json:"facts"`
	CreatedAt time.Time `json:"createdAt"`
	CreatedBy string    `json:"createdBy"`
}

func registeredFrom(r *capb.Registration) registered {
	return registered{
		ID: r.GetId(), SPIFFEID: r.GetSpiffeId(), Node: r.GetNode(), Facts: slices.Concat([]string{}, r.GetFacts()),
		CreatedAt: r.GetCreatedAt().AsTime(), CreatedBy: r.GetCreatedBy(),
	}
}

// authoritySocket says how the commands about registrations reach the authority.
type authoritySocket struct{ dir, state, socket string }

func (s *authoritySocket) register(c *cobra.Command) {
	c.Flags().StringVar(&s.dir, "dir", ".", "the mesh `directory` of a running writ up")
	stateFlag(c, &s.state)
	c.Flags().StringVar(&s.socket, "admin", "", "the authority's admin `socket`, unix:///path, instead of a mesh of writ up")
}

// call connects, calls f with a time limit and closes the connection.
func (s *authoritySocket) call(ctx context.Context, f func(context.Context, *grpc.ClientConn) error) error {
	conn, err := adminSocket([]string{s.dir}, s.state, s.socket, "ca")
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx, conn)
}

func registerCommand() *cobra.Command {
	var o output
	var at authoritySocket
	var req capb.PutRegistrationRequest
	c := &cobra.Command{
		Use:   "register SPIFFE-ID",
		Short: "Give an identity to every process that has all of some facts",
		Long: `Give an identity to every process that has all of some facts, on one node or on
all. The node agents of these nodes know it a moment later. Facts are written as
KIND:VALUE; writ explain identity shows those that a process has. The kinds are
` + kindsOfFacts() + `
If a process has the facts of several registrations, the one with the most facts
counts; with a tie between different identities it gets none. docker:label has the
value NAME:VALUE.`,
		Example: "  writ certs register spiffe://cluster.local/ns/default/sa/billing --node n1 --fact unix:uid:1000 --fact unix:path:/usr/bin/billing",
		Args:    arguments(1, 1, "one SPIFFE ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.SpiffeId = args[0]
			if (req.GetNode() == "") != req.GetAllNodes() {
				return errors.New("say where: --node NAME or --all-nodes")
			}
			if len(req.GetFacts()) == 0 {
				return errors.New("say by what: --fact KIND:VALUE, once or more")
			}
			for _, f := range req.GetFacts() {
				if _, _, err := fact.Parse(f); err != nil {
					return err
				}
			}
			return at.call(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				r, err := capb.NewRegistrationsClient(conn).PutRegistration(ctx, &req)
				if err != nil {
					return err
				}
				row := registeredFrom(r)
				return o.print(cmd.OutOrStdout(), row, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "registration %s gives %s to who has %s, on %s\n", row.ID, row.SPIFFEID, strings.Join(row.Facts, " and "), nodeName(row.Node))
					return err
				})
			})
		},
	}
	o.register(c)
	at.register(c)
	f := c.Flags()
	f.StringVar(&req.Node, "node", "", "only on this `node`")
	f.BoolVar(&req.AllNodes, "all-nodes", false, "on every node")
	f.StringArrayVar(&req.Facts, "fact", nil, "a `fact` that a process must have, KIND:VALUE; may be repeated")
	return c
}

// kindsOfFacts lists them in lines of a terminal.
func kindsOfFacts() string {
	var lines []string
	for part := range slices.Chunk(fact.Kinds(), 4) {
		lines = append(lines, "  "+strings.Join(text(part), ", "))
	}
	return strings.Join(lines, ",\n")
}

func text(kinds []fact.Kind) []string {
	var out []string
	for _, k := range kinds {
		out = append(out, string(k))
	}
	return out
}

func nodeName(node string) string {
	if node == "" {
		return "all nodes"
	}
	return "node " + node
}

func unregisterCommand() *cobra.Command {
	var at authoritySocket
	c := &cobra.Command{
		Use:   "unregister ID...",
		Short: "Drop registrations",
		Long: `Drop registrations, by the ids that writ certs registrations lists. Who had an
identity by one gets no new certificate; the one that it has lasts until it
expires.`,
		Example: "  writ certs unregister 0f8a1c0d9be24f0a8d1f3b6a5c7e9d20",
		Args:    arguments(1, math.MaxInt, "one id of a registration or several"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return at.call(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				for _, id := range args {
					if _, err := capb.NewRegistrationsClient(conn).DeleteRegistration(ctx, &capb.DeleteRegistrationRequest{Id: id}); err != nil {
						return err
					}
					fmt.Fprintf(cmd.OutOrStdout(), "registration %s is dropped\n", id)
				}
				return nil
			})
		},
	}
	at.register(c)
	return c
}

func registrationsCommand() *cobra.Command {
	var o output
	var at authoritySocket
	var req capb.ListRegistrationsRequest
	c := &cobra.Command{
		Use:     "registrations",
		Short:   "List who gets which identity by which facts",
		Long:    "List the registrations that writ certs register made. What the mesh directory\nplaces is not among them.",
		Example: "  writ certs registrations --node n1",
		Args:    arguments(0, 0, "nothing but flags"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return at.call(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				rows, err := listRegistrations(ctx, conn, &req)
				if err != nil {
					return err
				}
				return o.print(cmd.OutOrStdout(), rows, func(w io.Writer) error { return printRegistrations(w, rows) })
			})
		},
	}
	o.register(c)
	at.register(c)
	c.Flags().StringVar(&req.SpiffeId, "id", "", "only those of this `identity`")
	c.Flags().StringVar(&req.Node, "node", "", "only those that hold on this `node`")
	return c
}

func listRegistrations(ctx context.Context, conn *grpc.ClientConn, req *capb.ListRegistrationsRequest) ([]registered, error) {
	stream, err := capb.NewRegistrationsClient(conn).ListRegistrations(ctx, req)
	if err != nil {
		return nil, err
	}
	rows := []registered{}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, err
		}
		rows = append(rows, registeredFrom(r))
	}
}

func printRegistrations(out io.Writer, rows []registered) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tIDENTITY\tWHERE\tFACTS")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.ID, r.SPIFFEID, nodeName(r.Node), strings.Join(r.Facts, " "))
	}
	return w.Flush()
}
