// Command writ-pilot reads the configuration of a mesh and distributes it to Envoys and
// to the other services of Writ.
package main

import (
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/pilot"
)

func main() {
	service.Main(service.Spec[pilot.Config]{
		Name:     "writ-pilot",
		About:    "reads the configuration of the mesh and distributes it over xDS",
		Example:  "writ-pilot -mesh examples/bookinfo -plaintext 127.0.0.1:15010",
		Default:  pilot.DefaultConfig,
		Common:   func(c *pilot.Config) *service.Common { return &c.Common },
		Flags:    (*pilot.Config).Flags,
		Validate: (*pilot.Config).Validate,
		Run:      pilot.Runner(rego.Check, new(rego.Splitter).Split),
	})
}
