package security

import (
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestOneKindEverywhere has one AuthorizationPolicy and one QuotaPolicy of the root
// namespace decide in real Envoys at a sidecar, at a gateway on the way in and at one on
// the way out.
func TestOneKindEverywhere(t *testing.T) {
	t.Parallel()
	eachEnvoy(t, func(t *testing.T, bin string) {
		server := &decider{deniedBy: "QuotaPolicy istio-system/q limit 0"}
		m := newMesh(t, "kind: AuthorizationPolicy\nmetadata: {name: everywhere, namespace: istio-system}\nspec:\n  action: DENY\n  rules: [{to: [{operation: {paths: [/secret]}}]}]")
		m.Deciders.RateLimit = server.serve(t)
		m.QuotaPolicies = []*model.QuotaPolicy{quotaPolicy("q", true, per(dim("request.headers[who]")))}
		m.QuotaPolicies[0].Namespace = m.RootNamespace
		at := map[string]inbound{"sidecar": patient(t, inbound{http: compileHTTP(t, m, workload())})}
		hosts := map[string]string{"sidecar": "httpbin.default", "ingress": "shop.example", "egress": "api.partner.example"}
		for _, name := range []string{"ingress", "egress"} {
			gateway := workload()
			gateway.Type, gateway.Name, gateway.Namespace = model.GatewayProxy, name, "istio-system"
			gateway.Labels = map[string]string{"istio": name + "gateway"}
			at[name] = patient(t, inbound{http: compileHTTP(t, m, gateway)})
		}
		p := start(t, bin, at)
		for name, host := range hosts {
			for _, c := range []struct {
				path, who string
				status    int
			}{{"/", "a", 200}, {"/secret", "a", 403}, {"/", "refuse", 429}} {
				if got := p.do(name, request{path: c.path, host: host, header: map[string]string{"who": c.who}}); got.status != c.status {
					t.Errorf("%s of %s at the %s: %d, want %d", c.path, c.who, name, got.status, c.status)
				}
			}
		}
	})
}
