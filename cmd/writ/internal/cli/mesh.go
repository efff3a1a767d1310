package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// meshSource says where a command that answers questions about policies has the mesh
// from: the files of a directory, or what is in force.
type meshSource struct {
	live   bool
	state  string
	socket string
}

func (s *meshSource) register(c *cobra.Command) {
	c.Flags().BoolVar(&s.live, "live", false, "ask about what is in force in the mesh that runs from DIR, and not about its files")
	c.Flags().StringVar(&s.socket, "admin", "", "pilot's admin `socket`, unix:///path, instead of a mesh of writ up; implies --live")
	stateFlag(c, &s.state)
}

// read gives the mesh.
func (s *meshSource) read(ctx context.Context, args []string) (*model.Mesh, error) {
	if s.live || s.socket != "" {
		return s.inForce(ctx, args)
	}
	return readMesh(meshDir(args))
}

// readMesh reads a directory, whose files have to be valid: an answer about what is
// left of them would be about another mesh.
func readMesh(dir string) (*model.Mesh, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%s is no mesh directory", dir)
	}
	mesh, problems := meshdir.Assume(meshdir.Options{Dir: dir, CompileRego: rego.Check, SplitRego: new(rego.Splitter).Split})
	var bad []error
	for _, p := range meshdir.Errors(problems) {
		bad = append(bad, errors.New(problemLine(dir, problemOf(p))))
	}
	if len(bad) > 0 || mesh == nil {
		return nil, errors.Join(append(bad, fmt.Errorf("%s is not valid: what it would do cannot be told", dir))...)
	}
	return mesh, nil
}

// inForce asks pilot for the files that every Envoy goes by now.
func (s *meshSource) inForce(ctx context.Context, args []string) (*model.Mesh, error) {
	conn, err := adminSocket(args, s.state, s.socket, "pilot")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := pilotpb.NewConfigurationClient(conn).GetConfiguration(ctx, &pilotpb.GetConfigurationRequest{})
	if err != nil {
		return nil, err
	}
	mesh, problems := meshdir.ParseVersion(r.GetFiles(), meshdir.Options{
		Deciders: model.Deciders{Authz: r.GetAuthz(), RateLimit: r.GetRatelimit()}, SplitRego: new(rego.Splitter).Split,
	})
	if bad := meshdir.Errors(problems); len(bad) > 0 {
		return nil, fmt.Errorf("pilot has what this version of writ cannot read: %s", bad[0])
	}
	return mesh, nil
}

// header is a flag "name=value" that may be given several times.
func parseHeaders(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, h := range list {
		name, value, ok := strings.Cut(h, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--header %q: want NAME=VALUE", h)
		}
		name = strings.ToLower(name)
		if have, twice := out[name]; twice {
			value = have + "," + value // as Envoy joins them
		}
		out[name] = value
	}
	return out, nil
}
