// Command writ-pilot reads the configuration of a mesh and distributes it to Envoys and
// to the other services of Writ.
package main

import (
	"flag"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/pilot"
)

func main() {
	service.Main(service.Spec[pilot.Config]{
		Name:     "writ-pilot",
		About:    "reads the configuration of the mesh and distributes it over xDS",
		Default:  pilot.Default,
		Common:   func(c *pilot.Config) *service.Common { return &c.Common },
		Flags:    flags,
		Validate: (*pilot.Config).Validate,
		Run:      pilot.Runner(rego.Check),
	})
}

func flags(fs *flag.FlagSet, c *pilot.Config) {
	fs.StringVar(&c.Mesh, "mesh", c.Mesh, "directory with the configuration of the mesh")
	fs.StringVar(&c.Plaintext, "plaintext", c.Plaintext, "serve any xDS client without TLS on a loopback address, such as 127.0.0.1:15010")
	fs.StringVar(&c.Admin, "admin", c.Admin, "serve the status on unix:///path")
	fs.StringVar(&c.State, "state", c.State, "directory that keeps the revision number over a restart")
}
