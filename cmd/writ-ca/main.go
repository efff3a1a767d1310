// Command writ-ca is the SPIFFE certificate authority of Writ.
package main

import (
	"flag"

	"github.com/writ-mesh/writ/ca"
	"github.com/writ-mesh/writ/internal/service"
)

func main() {
	service.Main(service.Spec[ca.Config]{
		Name:     "writ-ca",
		About:    "the certificate authority: X.509-SVIDs for workloads, node agents and services",
		Default:  ca.DefaultConfig,
		Common:   func(c *ca.Config) *service.Common { return &c.Common },
		Flags:    func(fs *flag.FlagSet, c *ca.Config) { c.Flags(fs) },
		Validate: (*ca.Config).Validate,
		Run:      ca.Run,
	})
}
