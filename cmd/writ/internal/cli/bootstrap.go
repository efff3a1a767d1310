package cli

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/nodeagent/bootstrap"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

func bootstrapCommand() *cobra.Command {
	var agent, out, proxy string
	c := &cobra.Command{
		Use:   "bootstrap INSTANCES",
		Short: "Write the configuration that an Envoy of the mesh starts with",
		Long: `Write the bootstrap of every proxy in an instances file as JSON, to be given to
envoy -c: who it is and where its node agent is. Everything else comes from pilot.
With --out DIR a file for each proxy, DIR/<namespace>-<name>.json; with
--proxy NAMESPACE/NAME that one alone, to standard output.`,
		Example: "  writ bootstrap deploy/compose/instances.yaml --agent unix:///run/writ/agent/agent.sock --proxy default/ratings",
		Args:    arguments(1, 1, "one file of instances"),
		RunE: func(cmd *cobra.Command, args []string) error {
			socket, ok := listen.Unix(agent)
			if !ok {
				return fmt.Errorf("--agent %q: want unix:///absolute/path, the node agent's socket", agent)
			}
			if (out == "") == (proxy == "") {
				return fmt.Errorf("one of --out DIR and --proxy NAMESPACE/NAME says which bootstrap goes where")
			}
			return bootstraps(args[0], socket, out, proxy, cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&agent, "agent", "unix:///run/writ/nodeagent.sock", "the node agent's `socket`, unix:///path, as the proxies see it")
	f.StringVar(&out, "out", "", "write a file for each proxy into this `directory`")
	f.StringVar(&proxy, "proxy", "", "print that of this `proxy`, namespace/name")
	return c
}

func bootstraps(file, socket, out, proxy string, w io.Writer) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	instances, problems := meshdir.ParseInstances(filepath.Base(file), data)
	if bad := meshdir.Errors(problems); len(bad) > 0 {
		return fmt.Errorf("%s", bad[0].String())
	}
	var names []string
	for _, in := range instances {
		b, err := bootstrapOf(in, socket)
		if err != nil {
			return fmt.Errorf("%s/%s: %w", in.Namespace, in.Name, err)
		}
		name := in.Namespace + "/" + in.Name
		names = append(names, name)
		switch {
		case name == proxy:
			_, err = w.Write(b)
			return err
		case out != "":
			if err := atomicfile.Write(filepath.Join(out, in.Namespace+"-"+in.Name+".json"), b, 0o644); err != nil {
				return err
			}
		}
	}
	if proxy != "" {
		return fmt.Errorf("%s has no proxy %q; it has %s", file, proxy, strings.Join(names, ", "))
	}
	return nil
}

// bootstrapOf binds an explicit proxy's own listeners to the replica's address,
// where several share a machine; the others have a network of their own.
func bootstrapOf(in meshdir.Instance, socket string) ([]byte, error) {
	o := bootstrap.Options{NodeID: meshdir.ProxyID(in), Cluster: in.Name, AgentSocket: socket}
	if in.Spec.Interception != "redirect" && in.Spec.Type != "gateway" {
		addr, err := netip.ParseAddr(in.Spec.Address)
		if err != nil {
			return nil, err
		}
		o.Address = addr
	}
	return bootstrap.Bootstrap(o)
}
