// Command writ-authz is the ext_authz server: package authz.
package main

import (
	"flag"

	"github.com/writ-mesh/writ/authz"
	"github.com/writ-mesh/writ/internal/service"
)

func main() {
	service.Main(service.Spec[authz.Config]{
		Name:     "writ-authz",
		About:    "decides requests for Envoy (ext_authz) by Rego policies, in the mesh or in place of the OPA-Envoy plugin",
		Default:  authz.DefaultConfig,
		Common:   func(c *authz.Config) *service.Common { return &c.Common },
		Flags:    func(fs *flag.FlagSet, c *authz.Config) { c.Flags(fs) },
		Args:     func(c *authz.Config, args []string) error { return c.Args(args) },
		Validate: func(c *authz.Config) error { return c.Validate() },
		Run:      authz.Run,
	})
}
