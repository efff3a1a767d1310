package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/cmd/writ/internal/check"
	"github.com/writ-mesh/writ/cmd/writ/internal/proxyconfig"
	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
)

func proxyConfigCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "proxy-config",
		Aliases: []string{"pc"},
		Short:   "Show what an Envoy has: listeners, routes, clusters, endpoints, secrets",
		Long: `Show what the Envoy of a replica or a gateway has, as it says itself: what came
from pilot and the node agent, in which version, and what it refused.
writ explain says what becomes of a request by it.`,
		Example: "  writ proxy-config routes productpage-1 examples/bookinfo --name 9080",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return fmt.Errorf("unknown command %q of writ proxy-config: it has listeners, routes, clusters, endpoints and secrets", args[0])
		},
	}
	c.AddCommand(listenersCommand(), routesCommand(), clustersCommand(), endpointsCommand(), secretsCommand())
	return c
}

// What the kinds of resources are asked for.
const (
	configDump    = "/config_dump?include_eds"
	clusterHealth = "/clusters?format=json"
)

// proxyFlags are those of every command of writ proxy-config.
type proxyFlags struct {
	o           output
	state, file string
}

// filter keeps the rows in which a value, if it is given, is the one that is wanted.
type filter[T any] struct {
	name, usage string
	of          func(*T) string
	want        string
}

// proxyCommand is one command of writ proxy-config: from is what Envoy is asked, parse
// gives its rows, table prints them.
func proxyCommand[T any](what string, aliases []string, long, from string, filters []filter[T], parse func([]byte) ([]T, error), table func(*tabwriter.Writer, []T)) *cobra.Command {
	var f proxyFlags
	c := &cobra.Command{
		Use:     what + " [WORKLOAD [DIR]]",
		Aliases: aliases,
		Short:   "Show the " + what + " of an Envoy",
		Long: long + `
With --file what was saved of ` + from + ` is read instead ("-" is standard input).
Exit code 0: some are shown; 1: there are none such; 2: cannot tell.`,
		Example: "  writ proxy-config " + what + " productpage-1 examples/bookinfo",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.o.known(); err != nil {
				return err
			}
			data, err := f.read(cmd, args, from)
			if err != nil {
				return err
			}
			rows, err := parse(data)
			if err != nil {
				return err
			}
			for _, x := range filters {
				if x.want != "" {
					rows = slices.DeleteFunc(rows, func(row T) bool { return !strings.EqualFold(x.of(&row), x.want) })
				}
			}
			err = f.o.print(cmd.OutOrStdout(), rows, func(out io.Writer) error {
				if len(rows) == 0 {
					return nil
				}
				w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				table(w, rows)
				return w.Flush()
			})
			if err == nil && len(rows) == 0 {
				return failed(errors.New("there are none such"))
			}
			return err
		},
	}
	f.o.register(c)
	stateFlag(c, &f.state)
	c.Flags().StringVarP(&f.file, "file", "f", "", "a `file` with an answer of Envoy's "+from)
	for i := range filters {
		c.Flags().StringVar(&filters[i].want, filters[i].name, "", filters[i].usage)
	}
	return c
}

// read gives what the Envoy of a workload answers, or what is in a file.
func (f *proxyFlags) read(cmd *cobra.Command, args []string, from string) ([]byte, error) {
	if f.file != "" {
		if len(args) > 0 {
			return nil, fmt.Errorf("--file %s says what to show: name no workload", f.file)
		}
		return readDump(cmd.InOrStdin(), f.file)
	}
	if err := arguments(1, 2, "one replica or gateway, and the mesh directory unless it is the current one")(cmd, args); err != nil {
		return nil, err
	}
	ready, err := stack.Running(meshDir(args[1:]), f.state)
	if err != nil {
		return nil, err
	}
	name, envoy, _, err := proxyOf(ready, args[0])
	if err != nil {
		return nil, failed(err)
	}
	data, err := askEnvoy(cmd.Context(), envoy+from)
	if err != nil {
		return nil, fmt.Errorf("the Envoy of %s: %w", name, err)
	}
	return data, nil
}

func readDump(stdin io.Reader, file string) ([]byte, error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return bounded(in, file)
}

// bounded reads all of what it takes for an answer of an Envoy.
func bounded(in io.Reader, what string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(in, maxAnswer+1))
	if err == nil && len(data) > maxAnswer {
		err = fmt.Errorf("%s has more than %d MiB", what, maxAnswer>>20)
	}
	return data, err
}

// askEnvoy gives an answer of an administration interface.
func askEnvoy(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{}} // no proxy
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return bounded(resp.Body, url)
}

// ofDump makes a parser of one part of a dump.
func ofDump[T any](part func(*proxyconfig.Dump) []T) func([]byte) ([]T, error) {
	return func(data []byte) ([]T, error) {
		d, err := proxyconfig.Parse(data)
		if err != nil {
			return nil, err
		}
		return part(d), nil
	}
}

func listenersCommand() *cobra.Command {
	type row = proxyconfig.Listener
	return proxyCommand("listeners", []string{"listener", "l"}, `Show the sockets at which an Envoy takes connections, and what becomes of these.`, configDump,
		[]filter[row]{
			{name: "address", usage: "only those at this IP `address`", of: func(l *row) string { return l.Address }},
			{name: "port", usage: "only those at this `port`", of: func(l *row) string { return fmt.Sprint(l.Port) }},
			{name: "name", usage: "only the one of this `name`", of: func(l *row) string { return l.Name }},
		},
		ofDump(func(d *proxyconfig.Dump) []row { return d.Listeners }),
		func(w *tabwriter.Writer, rows []row) {
			fmt.Fprintln(w, "ADDRESS\tPORT\tSTATE\tMATCH\tDESTINATION")
			for _, l := range rows {
				for _, c := range l.Chains {
					cells(w, l.Address, fmt.Sprint(l.Port), stateOf(l.State, l.Error), c.Match, c.Destination)
				}
				if len(l.Chains) == 0 {
					cells(w, cmp.Or(l.Address, l.Name), fmt.Sprint(l.Port), stateOf(l.State, l.Error), "", "")
				}
			}
		})
}

func routesCommand() *cobra.Command {
	type row = proxyconfig.Route
	return proxyCommand("routes", []string{"route", "r"}, `Show where an Envoy sends which requests, in the order in which it looks.`, configDump,
		[]filter[row]{
			{name: "name", usage: "only those of the route configuration of this `name`", of: func(r *row) string { return r.Name }},
			{name: "host", usage: "only those of the virtual host of this `name`", of: func(r *row) string { return r.VirtualHost }},
		},
		ofDump(func(d *proxyconfig.Dump) []row { return d.Routes }),
		func(w *tabwriter.Writer, rows []row) {
			fmt.Fprintln(w, "NAME\tVIRTUAL HOST\tDOMAINS\tMATCH\tDESTINATION")
			for _, r := range rows {
				domains := r.Domains
				if len(domains) > 2 {
					domains = append(slices.Clone(domains[:2]), fmt.Sprintf("and %d more", len(r.Domains)-2))
				}
				cells(w, r.Name, r.VirtualHost, strings.Join(domains, ", "), r.Match, r.Destination)
			}
		})
}

func clustersCommand() *cobra.Command {
	type row = proxyconfig.Cluster
	return proxyCommand("clusters", []string{"cluster", "c"}, `Show the services that an Envoy can reach, and those that it stands before.`, configDump,
		[]filter[row]{
			{name: "fqdn", usage: "only those of this `host`", of: func(c *row) string { return c.Host }},
			{name: "port", usage: "only those of this `port`", of: func(c *row) string { return c.Port }},
			{name: "subset", usage: "only those of the `subset` of this name", of: func(c *row) string { return c.Subset }},
			{name: "direction", usage: "only those of one `direction`, inbound or outbound", of: func(c *row) string { return c.Direction }},
		},
		ofDump(func(d *proxyconfig.Dump) []row { return d.Clusters }),
		func(w *tabwriter.Writer, rows []row) {
			fmt.Fprintln(w, "HOST\tPORT\tSUBSET\tDIRECTION\tTYPE\tSTATE")
			for _, c := range rows {
				cells(w, c.Host, c.Port, c.Subset, c.Direction, c.Type, stateOf(c.State, c.Error))
			}
		})
}

func endpointsCommand() *cobra.Command {
	type row = proxyconfig.Endpoint
	return proxyCommand("endpoints", []string{"endpoint", "ep"}, `Show the addresses behind an Envoy's clusters, and which of them it counts on.`, clusterHealth,
		[]filter[row]{
			{name: "cluster", usage: "only those of the cluster of this `name`", of: func(e *row) string { return e.Cluster }},
			{name: "address", usage: "only those at this `address`, HOST:PORT", of: func(e *row) string { return e.Address }},
			{name: "health", usage: "only those of this `health`, for example UNHEALTHY", of: func(e *row) string { return e.Health }},
		},
		proxyconfig.ParseEndpoints,
		func(w *tabwriter.Writer, rows []row) {
			fmt.Fprintln(w, "ENDPOINT\tHEALTH\tEJECTED\tPRIORITY\tWEIGHT\tLOCALITY\tCLUSTER")
			for _, e := range rows {
				ejected := "no"
				if e.Ejected {
					ejected = "yes"
				}
				cells(w, e.Address, e.Health, ejected, fmt.Sprint(e.Priority), fmt.Sprint(e.Weight), e.Locality, e.Cluster)
			}
		})
}

func secretsCommand() *cobra.Command {
	type row = proxyconfig.Secret
	return proxyCommand("secrets", []string{"secret", "s"}, `Show the certificates of an Envoy, and those by which it knows others. Keys are not shown.`, configDump,
		[]filter[row]{{name: "name", usage: "only the one of this `name`", of: func(s *row) string { return s.Name }}},
		ofDump(func(d *proxyconfig.Dump) []row { return d.Secrets }),
		func(w *tabwriter.Writer, rows []row) {
			fmt.Fprintln(w, "NAME\tKIND\tSTATE\tCERTIFICATES\tSERIAL\tEXPIRES IN\tEXPIRES AT (UTC)\tIDENTITY")
			for _, s := range rows {
				in, at := "", ""
				if s.Certificates > 0 {
					in, at = left(s.NotAfter, time.Now()), utc(s.NotAfter)
				}
				cells(w, s.Name, s.Kind, stateOf(s.State, s.Error), fmt.Sprint(s.Certificates), s.Serial, in, at, cmp.Or(strings.Join(s.Names, ", "), s.Subject))
			}
		})
}

// stateOf tells the state of a resource, and why a newer one was refused.
func stateOf(state, refused string) string {
	switch {
	case refused == "":
		return state
	case state == proxyconfig.Refused:
		return state + ": " + firstLine(refused)
	}
	return state + ", a newer one refused: " + firstLine(refused)
}

// cells prints a row. What a terminal would obey is not printed as it is.
func cells(w io.Writer, values ...string) {
	for i, v := range values {
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			v = fmt.Sprintf("%q", v)
		}
		values[i] = check.Dash(v)
	}
	fmt.Fprintln(w, strings.Join(values, "\t"))
}
