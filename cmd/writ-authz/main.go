// Command writ-authz is the ext_authz server: package authz.
package main

import (
	"github.com/writ-mesh/writ/authz"
	"github.com/writ-mesh/writ/internal/service"
)

func main() {
	service.Main(service.Spec[authz.Config]{
		Name:     "writ-authz",
		About:    "decides requests for Envoy (ext_authz) by Rego policies, in the mesh or in place of the OPA-Envoy plugin",
		Example:  "writ-authz -opa-config config.yaml policy.rego",
		Default:  authz.DefaultConfig,
		Common:   func(c *authz.Config) *service.Common { return &c.Common },
		Flags:    (*authz.Config).Flags,
		Args:     (*authz.Config).Args,
		Validate: (*authz.Config).Validate,
		Run:      authz.Run,
	})
}
