package writ_test

import (
	"testing"

	"github.com/writ-mesh/writ/authz"
	"github.com/writ-mesh/writ/nodeagent/bootstrap"
	"github.com/writ-mesh/writ/nodeagent/sds"
	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/ratelimit"
)

// TestServicesAgreeOnNames: what one service writes into an Envoy's
// configuration another one reads from Envoy's calls. They do not import each
// other, so each has the name for itself.
func TestServicesAgreeOnNames(t *testing.T) {
	for what, names := range map[string][]any{
		"header of refusals":     {security.DeniedByHeader, authz.DeniedByHeader, ratelimit.DeniedByHeader},
		"policies to decide":     {security.PoliciesKey, authz.PoliciesKey},
		"cluster of the agent":   {envoy.AgentCluster, bootstrap.AgentCluster},
		"secret with the key":    {envoy.SecretDefault, sds.NameDefault},
		"secret with the roots":  {envoy.SecretRoot, sds.NameRoot},
		"secret of a federation": {envoy.SecretFederated, sds.NameFederated},
		"administration's port":  {model.AdminPort, bootstrap.AdminPort},
		"readiness's port":       {model.ReadinessPort, bootstrap.ReadinessPort},
		"port of figures":        {model.PrometheusPort, bootstrap.PrometheusPort},
	} {
		for _, name := range names {
			if name != names[0] {
				t.Errorf("%s: %v", what, names)
			}
		}
	}
}
