package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	"github.com/writ-mesh/writ/pilot/listsource"
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

// running says that a mesh is asked that runs, and not files.
func (s *meshSource) running() bool { return s.live || s.socket != "" }

// read gives the mesh.
func (s *meshSource) read(ctx context.Context, args []string) (*model.Mesh, error) {
	if s.running() {
		return s.inForce(ctx, args)
	}
	return readMeshOf(meshDir(args), s.state)
}

// readMesh reads a directory, whose files have to be valid: an answer about what is
// left of them would be about another mesh.
func readMesh(dir string) (*model.Mesh, error) { return readMeshOf(dir, "") }

// readMeshOf is readMesh where the state may be elsewhere: replicas that ran have the
// addresses that they had.
func readMeshOf(dir, state string) (*model.Mesh, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%s is no mesh directory", dir)
	}
	options := meshdir.Options{Dir: dir, InstancesFile: stack.Instances(dir, state), CompileRego: rego.Check, SplitRego: new(rego.Splitter).Split}
	mesh, problems := meshdir.Assume(options)
	var bad []error
	for _, p := range meshdir.Errors(problems) {
		bad = append(bad, errors.New(problemLine(dir, problemOf(p))))
	}
	if len(bad) > 0 || mesh == nil {
		return nil, errors.Join(append(bad, fmt.Errorf("%s is not valid: what it would do cannot be told", dir))...)
	}
	mesh.Fetched = listsource.OfFiles(mesh.AccessLists, options.ReadNamed)
	return mesh, nil
}

// configuration asks pilot for the files that every Envoy goes by now, and what else is
// in force.
func (s *meshSource) configuration(ctx context.Context, args []string) (*pilotpb.GetConfigurationResponse, error) {
	conn, err := adminSocket(args, s.state, s.socket, "pilot")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return pilotpb.NewConfigurationClient(conn).GetConfiguration(ctx, &pilotpb.GetConfigurationRequest{})
}

// inForce makes a mesh of what is in force.
func (s *meshSource) inForce(ctx context.Context, args []string) (*model.Mesh, error) {
	r, err := s.configuration(ctx, args)
	if err != nil {
		return nil, err
	}
	mesh, problems := meshdir.ParseVersion(r.GetFiles(), meshdir.Options{
		Deciders: model.Deciders{Authz: r.GetAuthz(), RateLimit: r.GetRatelimit()}, SplitRego: new(rego.Splitter).Split,
	})
	if bad := meshdir.Errors(problems); len(bad) > 0 {
		return nil, fmt.Errorf("pilot has what this version of writ cannot read: %s", bad[0])
	}
	besidesFiles(mesh, r)
	return mesh, nil
}

// besidesFiles adds what is revoked, what came from the sources of lists, and keys.
func besidesFiles(mesh *model.Mesh, r *pilotpb.GetConfigurationResponse) {
	for _, c := range r.GetRevokedCertificates() {
		mesh.Revoked.Certificates = append(mesh.Revoked.Certificates, model.RevokedCertificate{Serial: c.GetSerial(), SPIFFEID: c.GetSpiffeId()})
	}
	for _, id := range r.GetRevokedIdentities() {
		mesh.Revoked.Identities = append(mesh.Revoked.Identities, model.RevokedIdentity{SPIFFEID: id})
	}
	mesh.Fetched = map[string]model.Fetched{}
	for name, list := range r.GetLists() {
		mesh.Fetched[name] = model.Fetched{Entries: list.GetEntries(), Expired: list.GetExpired()}
	}
	fetchedKeys(mesh, r.GetKeySets())
}

// revoked asks pilot whether tokens are revoked; nil for a mesh that does not run.
func (s *meshSource) revoked(ctx context.Context, args []string) func(claims map[string]any) (string, error) {
	if !s.running() {
		return nil
	}
	return func(claims map[string]any) (string, error) {
		conn, err := adminSocket(args, s.state, s.socket, "pilot")
		if err != nil {
			return "", err
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		text := func(claim string) string { t, _ := claims[claim].(string); return t }
		req := &pilotpb.CheckTokenRequest{Issuer: text("iss"), Sub: text("sub"), Jti: text("jti")}
		if at, ok := claims["iat"].(float64); ok {
			req.IssuedAt = &at
		}
		r, err := pilotpb.NewTokenRevocationsClient(conn).CheckToken(ctx, req)
		return r.GetReason(), err
	}
}

// parseHeaders reads a flag "name=value" that may be given several times; lines are
// the headers of which there is more than one.
func parseHeaders(list []string) (joined map[string]string, lines map[string][]string, err error) {
	joined, lines = map[string]string{}, map[string][]string{}
	for _, h := range list {
		name, value, ok := strings.Cut(h, "=")
		if !ok || name == "" {
			return nil, nil, fmt.Errorf("--header %q: want NAME=VALUE", h)
		}
		name = strings.ToLower(name)
		lines[name] = append(lines[name], value)
		joined[name] = strings.Join(lines[name], ",") // as Envoy joins them
	}
	maps.DeleteFunc(lines, func(_ string, all []string) bool { return len(all) == 1 })
	return joined, lines, nil
}
