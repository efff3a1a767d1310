// Command writ-ca is the SPIFFE certificate authority of Writ.
package main

import (
	"github.com/writ-mesh/writ/ca"
	"github.com/writ-mesh/writ/internal/service"
)

func main() {
	service.Main(service.Spec[ca.Config]{
		Name:     "writ-ca",
		About:    "the certificate authority: X.509-SVIDs for workloads, node agents and services",
		Example:  "writ-ca -trust-domain example.org -state /var/lib/writ/ca -admin unix:///run/writ/ca.sock",
		Default:  ca.DefaultConfig,
		Common:   func(c *ca.Config) *service.Common { return &c.Common },
		Flags:    (*ca.Config).Flags,
		Validate: (*ca.Config).Validate,
		Run:      ca.Run,
	})
}
