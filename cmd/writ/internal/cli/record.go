package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// envoyAdminPort is where the Envoys of writ up are asked.
const envoyAdminPort = 15000

func recordCommand() *cobra.Command {
	var o output
	var state string
	percent := -1
	c := &cobra.Command{
		Use:   "record --percent N [DIR]",
		Short: "Let Envoys report requests that they allow by themselves",
		Long: `Let each Envoy of the mesh of writ up in DIR report N percent of the requests to its
workload, so that authz records them for writ replay and writ suggest. Without it they
report refusals and would-be refusals only, and an allowed request costs nothing. It
holds until the Envoy ends, or until --percent 0.
Exit code 0: all do; 1: some do not; 2: cannot tell.`,
		Example: "  writ record --percent 100 examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			if percent < 0 || percent > 100 {
				return errors.New("say how many: --percent N, 0 to 100")
			}
			conn, err := admin(meshDir(args), state, "pilot")
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			st, err := pilotpb.NewStatusClient(conn).GetStatus(ctx, &pilotpb.GetStatusRequest{})
			if err != nil {
				return err
			}
			r := record(ctx, st, percent)
			if err := o.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printRecord(w, r) }); err != nil {
				return err
			}
			if len(r.Failed) > 0 {
				return errNo
			}
			return nil
		},
	}
	o.register(c)
	stateFlag(c, &state)
	c.Flags().IntVar(&percent, "percent", -1, "how many `percent` of the requests are reported")
	return c
}

// recordAnswer is the answer of `writ record -o json`.
type recordAnswer struct {
	Percent int      `json:"percent"`
	Proxies []string `json:"proxies"`
	Failed  []string `json:"failed,omitempty"`
}

func record(ctx context.Context, st *pilotpb.GetStatusResponse, percent int) *recordAnswer {
	r := &recordAnswer{Percent: percent, Proxies: []string{}}
	for _, c := range st.GetClients() {
		address, ok := proxyAddress(c.GetId())
		if !ok {
			continue
		}
		name := clientName(c.GetId())
		if err := setRuntime(ctx, address, percent); err != nil {
			r.Failed = append(r.Failed, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		r.Proxies = append(r.Proxies, name)
	}
	return r
}

// proxyAddress is that in a node id, <type>~<IP>~<name>~<domain>, on this machine.
func proxyAddress(id string) (netip.Addr, bool) {
	parts := strings.Split(id, "~")
	if len(parts) != 4 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(parts[1])
	return a, err == nil && a.IsLoopback()
}

func setRuntime(ctx context.Context, address netip.Addr, percent int) error {
	url := fmt.Sprintf("http://%s/runtime_modify?%s=%d", netip.AddrPortFrom(address, envoyAdminPort), configpb.RecordRuntimeKey, percent)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{}}).Do(req) // no proxy of the environment
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New("the Envoy answers " + resp.Status)
	}
	return nil
}

func printRecord(w io.Writer, r *recordAnswer) error {
	for _, f := range r.Failed {
		fmt.Fprintln(w, "error: "+f)
	}
	_, err := fmt.Fprintf(w, "%s report %d %% of their requests\n", count(len(r.Proxies), "proxy"), r.Percent)
	return err
}
