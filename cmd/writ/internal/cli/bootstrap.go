package cli

import (
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/nodeagent/bootstrap"
	"github.com/writ-mesh/writ/nodeagent/proxysecret"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

func bootstrapCommand() *cobra.Command {
	var agent, key, mode, out, proxy string
	var o output
	c := &cobra.Command{
		Use:   "bootstrap INSTANCES",
		Short: "Write the configuration that an Envoy of the mesh starts with",
		Long: `Write the bootstrap of every proxy in an instances file as JSON, to be given to
envoy -c: who it is and where its node agent is. Everything else comes from pilot.
With --out DIR a file for each proxy, DIR/<namespace>-<name>.json; with
--proxy NAMESPACE/NAME that one alone, to standard output.

Each has the secret by which the node agent knows its own Envoy's calls: only the
user of the Envoy should be able to read it. The secrets are made of the node's
key, --key FILE, which the agent has as proxy_key; it is made if it is not there.`,
		Example: "  writ bootstrap deploy/compose/instances.yaml --key /var/lib/writ/nodeagent/proxy.key --agent unix:///run/writ/agent/agent.sock --proxy default/ratings",
		Args:    arguments(1, 1, "one file of instances"),
		RunE: func(cmd *cobra.Command, args []string) error {
			socket, ok := listen.Unix(agent)
			if !ok {
				return fmt.Errorf("--agent %q: want unix:///absolute/path, the node agent's socket", agent)
			}
			if (out == "") == (proxy == "") {
				return fmt.Errorf("one of --out DIR and --proxy NAMESPACE/NAME says which bootstrap goes where")
			}
			perm, err := strconv.ParseUint(mode, 8, 32)
			if err != nil || perm&^0o640 != 0 || perm&0o600 != 0o600 {
				return fmt.Errorf("--mode %q: want 0600, or 0640 where the proxies' users have a group in common", mode)
			}
			secrets, err := proxysecret.Open(key)
			if err != nil {
				return err
			}
			b := bootstraps{socket: socket, secrets: secrets, out: out, mode: fs.FileMode(perm), proxy: proxy}
			written, err := b.write(args[0], cmd.OutOrStdout())
			if err != nil || proxy != "" { // which is JSON by itself
				return err
			}
			return o.print(cmd.OutOrStdout(), written, func(io.Writer) error { return nil })
		},
	}
	o.register(c)
	f := c.Flags()
	f.StringVar(&agent, "agent", "unix:///run/writ/nodeagent.sock", "the node agent's `socket`, unix:///path, as the proxies see it")
	f.StringVar(&key, "key", "/var/lib/writ/nodeagent/"+proxysecret.File, "the node's key for proxies' secrets, in this `file`")
	f.StringVar(&mode, "mode", "0600", "the `mode` of the files that --out writes, octal")
	f.StringVar(&out, "out", "", "write a file for each proxy into this `directory`")
	f.StringVar(&proxy, "proxy", "", "print that of this `proxy`, namespace/name")
	return c
}

// bootstraps are to be written.
type bootstraps struct {
	socket  string
	secrets *proxysecret.Key
	// out is a directory, "" for the one bootstrap of proxy.
	out, proxy string
	mode       fs.FileMode
}

// writtenBootstrap says where the bootstrap of a proxy is.
type writtenBootstrap struct {
	Proxy string `json:"proxy"`
	File  string `json:"file"`
}

func (o bootstraps) write(file string, w io.Writer) (written []writtenBootstrap, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	instances, problems := meshdir.ParseInstances(filepath.Base(file), data)
	if bad := meshdir.Errors(problems); len(bad) > 0 {
		return nil, fmt.Errorf("%s", bad[0].String())
	}
	var names []string
	for _, in := range instances {
		b, err := o.of(in)
		if err != nil {
			return nil, fmt.Errorf("%s/%s: %w", in.Namespace, in.Name, err)
		}
		name := in.Namespace + "/" + in.Name
		names = append(names, name)
		switch {
		case name == o.proxy:
			_, err = w.Write(b)
			return nil, err
		case o.out != "":
			path := filepath.Join(o.out, in.Namespace+"-"+in.Name+".json")
			if err := atomicfile.Write(path, b, o.mode); err != nil {
				return nil, err
			}
			written = append(written, writtenBootstrap{Proxy: name, File: path})
		}
	}
	if o.proxy != "" {
		return nil, fmt.Errorf("%s has no proxy %q; it has %s", file, o.proxy, strings.Join(names, ", "))
	}
	return written, nil
}

// of binds an explicit proxy's own listeners to the replica's address,
// where several share a machine; the others have a network of their own.
func (o bootstraps) of(in meshdir.Instance) ([]byte, error) {
	id := meshdir.ProxyID(in)
	b := bootstrap.Options{NodeID: id, Cluster: in.Name, AgentSocket: o.socket, Secret: o.secrets.Secret(id)}
	if in.Spec.Interception != "redirect" && in.Spec.Type != "gateway" {
		addr, err := netip.ParseAddr(in.Spec.Address)
		if err != nil {
			return nil, err
		}
		b.Address = addr
	}
	return bootstrap.Bootstrap(b)
}
