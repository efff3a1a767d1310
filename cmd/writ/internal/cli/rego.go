package cli

import "github.com/writ-mesh/writ/authz/rego"

// checkRego compiles a policy as authz would.
func checkRego(name, module, query string) error { return rego.Check(name, module, query) }
