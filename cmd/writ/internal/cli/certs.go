package cli

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

// meshALPN marks the mesh's own TLS, to be told from TLS of the application.
const meshALPN = "writ"

// certificate is a row of `writ certs ls`.
type certificate struct {
	Serial    string    `json:"serial"`
	SPIFFEID  string    `json:"spiffeId"`
	Requester string    `json:"requester"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	IssuedAt  time.Time `json:"issuedAt"`
	// Authority is the key id of what signed it.
	Authority string `json:"authority,omitempty"`
	// Facts are what was seen of whoever asked.
	Facts []string `json:"facts,omitempty"`
	// Workloads are the replicas and gateways that have it now, as far as the
	// node agent says.
	Workloads []string `json:"workloads,omitempty"`
}

func certsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "certs",
		Short:   "Look at certificates: who has which, and until when",
		Example: "  writ certs ls examples/bookinfo\n  writ certs show ratings-1 examples/bookinfo",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return fmt.Errorf("unknown command %q of writ certs: it has ls, show, join-token, register, unregister, registrations, revoke, unrevoke, revocations, jwt-keys, export, checkpoint, verify-log, backup and restore", args[0])
		},
	}
	c.AddCommand(certsListCommand(), certsShowCommand(), joinTokenCommand(), registerCommand(), unregisterCommand(), registrationsCommand(),
		exportCommand(), checkpointCommand(), verifyLogCommand(), backupCommand(), restoreCommand(), revokeCommand(), unrevokeCommand(), revocationsCommand(), jwtKeysCommand())
	return c
}

func certsListCommand() *cobra.Command {
	var o output
	var state, id string
	var all, live bool
	c := &cobra.Command{
		Use:   "ls [DIR]",
		Short: "List the newest certificate of each identity, and who has it",
		Long: `List the newest certificate of each identity, or with --live every one that has
not expired, or with --all every one that was ever issued. An identity is a service account: its replicas may share it.`,
		Example: "  writ certs ls examples/bookinfo\n  writ certs ls examples/bookinfo --all --id spiffe://cluster.local/ns/default/sa/bookinfo-reviews",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := meshDir(args)
			conn, err := admin(dir, state, "ca")
			if err != nil {
				return err
			}
			defer conn.Close()
			rows, err := listCertificates(cmd.Context(), conn, &capb.ListCertificatesRequest{Live: !all, SpiffeId: id})
			if err != nil {
				return err
			}
			// Without the node agent it is unknown who has which; the rest is told.
			inUse, _ := certificatesInUse(cmd.Context(), dir, state)
			for i := range rows {
				rows[i].Workloads = inUse[plainSerial(rows[i].Serial)]
			}
			if !all && !live {
				rows = newest(rows)
			}
			if len(rows) == 0 && id != "" && o != "json" {
				return failed(fmt.Errorf("there is no certificate of %s: identities begin with spiffe://, and writ certs ls lists them", id))
			}
			return o.print(cmd.OutOrStdout(), rows, func(w io.Writer) error {
				if err := printCertificates(w, rows, time.Now()); err != nil {
					return err
				}
				return printRoots(cmd.Context(), conn, w, time.Now())
			})
		},
	}
	o.register(c)
	stateFlag(c, &state)
	c.Flags().StringVar(&id, "id", "", "only this `identity`, for example spiffe://cluster.local/ns/default/sa/bookinfo-reviews")
	c.Flags().BoolVar(&live, "live", false, "every one that has not expired")
	c.Flags().BoolVar(&all, "all", false, "older and expired ones too")
	c.MarkFlagsMutuallyExclusive("live", "all")
	return c
}

// newest keeps the certificates that somebody has, and of identities of which
// nobody is known to have one the newest.
func newest(rows []certificate) []certificate {
	last := map[string]int{}
	known := map[string]bool{}
	for i, r := range rows { // the oldest first
		last[r.SPIFFEID] = i
		known[r.SPIFFEID] = known[r.SPIFFEID] || len(r.Workloads) > 0
	}
	out := []certificate{}
	for i, r := range rows {
		if len(r.Workloads) > 0 || !known[r.SPIFFEID] && last[r.SPIFFEID] == i {
			out = append(out, r)
		}
	}
	return out
}

// certificatesInUse gives the replicas and gateways by the serial of the
// certificate that they have.
func certificatesInUse(ctx context.Context, dir, state string) (map[string][]string, error) {
	conn, err := admin(dir, state, "nodeagent")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	st, err := nodeagentpb.NewAdminClient(conn).GetStatus(ctx, &nodeagentpb.GetStatusRequest{})
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, w := range st.GetWorkloads() {
		serial := plainSerial(w.GetSerial())
		out[serial] = append(out[serial], bareName(w.GetProxyId()))
	}
	for _, names := range out {
		slices.Sort(names)
	}
	return out, nil
}

// plainSerial is a serial number as everybody writes it: Envoy leaves out zeros.
func plainSerial(s string) string { return strings.TrimLeft(strings.ToLower(s), "0") }

// bareName is the name of a proxy without its namespace.
func bareName(id string) string {
	name, _, _ := strings.Cut(clientName(id), ".")
	return name
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
			Authority: r.GetAuthority(), Facts: r.GetFacts(),
		})
	}
}

func printCertificates(out io.Writer, rows []certificate, now time.Time) error {
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b certificate) int {
		// Workloads first; what is not one is a service of Writ or old.
		return cmp.Or(cmp.Compare(min(1, len(b.Workloads)), min(1, len(a.Workloads))), cmp.Compare(a.SPIFFEID, b.SPIFFEID))
	})
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WORKLOAD\tEXPIRES IN\tEXPIRES AT (UTC)\tIDENTITY\tSERIAL")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", holder(r), left(r.NotAfter, now), utc(r.NotAfter), r.SPIFFEID, r.Serial)
	}
	return w.Flush()
}

// holder says who has a certificate: replicas and gateways, or a service of Writ.
func holder(r certificate) string {
	_, path, _ := strings.Cut(strings.TrimPrefix(r.SPIFFEID, "spiffe://"), "/")
	switch service, ours := strings.CutPrefix(path, "writ/"); {
	case len(r.Workloads) > 0:
		return strings.Join(r.Workloads, ", ")
	case ours && strings.HasPrefix(service, "node/"):
		return "writ-nodeagent"
	case ours:
		return "writ-" + service
	}
	return "-"
}

// printRoots tells of the root at the foot of the list.
func printRoots(ctx context.Context, conn *grpc.ClientConn, out io.Writer, now time.Time) error {
	roots, err := bundle(ctx, conn)
	if err != nil {
		return err
	}
	what := ", which signs them all,"
	if len(roots) > 1 {
		what = " (`writ roots` says which signs)"
	}
	for _, root := range roots {
		fmt.Fprintf(out, "\nroot %s%s expires in %s (%s UTC)\n", root.Subject, what, left(root.NotAfter, now), utc(root.NotAfter))
	}
	return nil
}

// bundle gives the mesh's root certificates.
func bundle(ctx context.Context, conn *grpc.ClientConn) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b, err := capb.NewAdminClient(conn).GetBundle(ctx, &capb.GetBundleRequest{})
	if err != nil {
		return nil, err
	}
	out := make([]*x509.Certificate, 0, len(b.GetRoots()))
	for _, der := range b.GetRoots() {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, root)
	}
	return out, nil
}

// left is how long something is good for, in the unit that says enough.
func left(until, now time.Time) string {
	d := until.Sub(now)
	switch {
	case d <= 0:
		return "expired"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}

func utc(t time.Time) string { return t.UTC().Format(time.DateTime) }

// shown is the answer of `writ certs show`.
type shown struct {
	Workload string `json:"workload"`
	certificate
	SAN []string `json:"san"`
	// Issuer, Key and Chain are what the Envoy shows its callers; a gateway, which
	// nobody calls by its identity, shows none. Chain is from the leaf up.
	Issuer string `json:"issuer,omitempty"`
	Key    string `json:"key,omitempty"`
	Chain  []link `json:"chain,omitempty"`
	Roots  []link `json:"roots"`
}

type link struct {
	Subject  string    `json:"subject"`
	NotAfter time.Time `json:"notAfter"`
}

func certsShowCommand() *cobra.Command {
	var o output
	var state string
	c := &cobra.Command{
		Use:   "show WORKLOAD [DIR]",
		Short: "Show the certificate that a workload has now",
		Long: `Show the certificate that the Envoy of a replica or a gateway has now: who it
says it is, who signed it, and until when.`,
		Example: "  writ certs show ratings-1 examples/bookinfo",
		Args:    arguments(1, 2, "one replica or gateway, and the mesh directory unless it is the current one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := meshDir(args[1:])
			conn, err := admin(dir, state, "ca")
			if err != nil {
				return err
			}
			defer conn.Close()
			s, err := showCertificate(cmd.Context(), conn, dir, state, args[0])
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), s, func(w io.Writer) error { return printShown(w, s, time.Now()) })
		},
	}
	o.register(c)
	stateFlag(c, &state)
	return c
}

// showCertificate puts together what Envoy has, what the authority remembers of
// it, and the root.
func showCertificate(ctx context.Context, ca *grpc.ClientConn, dir, state, workload string) (*shown, error) {
	ready, err := stack.Running(dir, state)
	if err != nil {
		return nil, err
	}
	name, envoy, port, err := proxyOf(ready, workload)
	if err != nil {
		return nil, failed(err)
	}
	serial, san, err := envoyCertificate(ctx, envoy)
	if err != nil {
		return nil, fmt.Errorf("the Envoy of %s: %w", name, err)
	}
	s := &shown{Workload: name, SAN: san}
	rows, err := listCertificates(ctx, ca, &capb.ListCertificatesRequest{})
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		if plainSerial(r.Serial) == plainSerial(serial) {
			s.certificate = r
		}
	}
	if s.Serial == "" {
		return nil, failed(fmt.Errorf("the Envoy of %s has a certificate with the serial %s, which this mesh's authority did not issue", name, serial))
	}
	roots, err := bundle(ctx, ca)
	if err != nil {
		return nil, err
	}
	s.Roots = links(roots)
	if chain := shownBy(ctx, port); len(chain) > 0 {
		s.Issuer, s.Key, s.Chain = chain[0].Issuer.String(), keyOf(chain[0]), links(chain)
	}
	return s, nil
}

// proxyOf finds a replica or a gateway: its name, the administration interface of
// its Envoy, and a port at which that shows its certificate, "" if there is none.
func proxyOf(r *stack.Ready, name string) (found, envoy, port string, err error) {
	if w, err := r.Workload(name); err == nil {
		for _, p := range w.Ports {
			port = net.JoinHostPort(w.Address, fmt.Sprint(p))
		}
		return w.Name, w.Admin, port, nil
	}
	if g, err := r.Gateway(name); err == nil {
		return g.Name, g.Admin, "", nil
	}
	var names []string
	for _, w := range r.Workloads {
		names = append(names, w.Name)
	}
	for _, g := range r.Gateways {
		names = append(names, g.Name)
	}
	return "", "", "", fmt.Errorf("there is no replica or gateway %q; there are %s", name, strings.Join(names, ", "))
}

// envoyCertificate asks an Envoy for the certificate that it has now.
func envoyCertificate(ctx context.Context, admin string) (serial string, san []string, err error) {
	data, err := askEnvoy(ctx, admin+"/certs")
	if err != nil {
		return "", nil, err
	}
	var answer struct {
		Certificates []struct {
			Chain []struct {
				Serial string `json:"serial_number"`
				Names  []struct {
					URI string `json:"uri"`
				} `json:"subject_alt_names"`
			} `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return "", nil, fmt.Errorf("%s/certs: %w", admin, err)
	}
	for _, c := range answer.Certificates {
		for _, leaf := range c.Chain {
			var uris []string
			for _, n := range leaf.Names {
				uris = append(uris, n.URI)
			}
			if slices.ContainsFunc(uris, func(u string) bool { return strings.HasPrefix(u, "spiffe://") }) {
				return leaf.Serial, uris, nil
			}
		}
	}
	return "", nil, errors.New("it has no certificate yet")
}

// shownBy gives the chain that an Envoy shows to callers, which is all that is
// wanted of it: the connection is closed then, and nothing is trusted.
func shownBy(ctx context.Context, address string) []*x509.Certificate {
	if address == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var chain []*x509.Certificate
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{meshALPN},
		InsecureSkipVerify: true, //nolint:gosec // the certificate is looked at, not relied on
		VerifyConnection:   func(s tls.ConnectionState) error { chain = s.PeerCertificates; return nil },
	}}
	if c, err := d.DialContext(ctx, "tcp", address); err == nil {
		_ = c.Close()
	}
	return chain
}

func keyOf(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.Size()*8)
	default:
		return c.PublicKeyAlgorithm.String()
	}
}

func links(chain []*x509.Certificate) []link {
	out := make([]link, 0, len(chain))
	for _, c := range chain {
		out = append(out, link{cmp.Or(c.Subject.String(), "(no subject: the identity is in the SAN)"), c.NotAfter})
	}
	return out
}

func printShown(out io.Writer, s *shown, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("workload", "%s", s.Workload)
	row("identity", "%s (SAN)", strings.Join(s.SAN, ", "))
	row("serial", "%s, in use by its Envoy now", s.Serial)
	row("valid", "%s to %s UTC, expires in %s", utc(s.NotBefore), utc(s.NotAfter), left(s.NotAfter, now))
	row("asked for by", "%s", s.Requester)
	if s.Key != "" {
		row("key", "%s", s.Key)
		row("issuer", "%s", s.Issuer)
	}
	for i, c := range s.Chain {
		row(fmt.Sprintf("chain %d", i), "%s, expires in %s", c.Subject, left(c.NotAfter, now))
	}
	for _, r := range s.Roots {
		row("root", "%s, expires in %s (%s UTC)", r.Subject, left(r.NotAfter, now), utc(r.NotAfter))
	}
	return w.Flush()
}
