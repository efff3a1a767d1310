package security

import (
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// Names that pilot, authz and ratelimit agree on.
const (
	// authzCluster and rateLimitCluster reach the deciders.
	authzCluster     = "writ-authz"
	rateLimitCluster = "writ-ratelimit"
	// PoliciesKey is the context extension with the RegoPolicies to decide, each as
	// configpb.PolicyRef gives it, separated by commas. They name what the policies are,
	// so that an edit of one counts together with the rest of the routes.
	PoliciesKey = "writ.policies"
)

// authzTimeout is how long Envoy waits for authz; then whenUnavailable holds.
const authzTimeout = time.Second

// regoBodyBytes is how much of a body a Rego rule sees that asks for it.
const regoBodyBytes = 64 << 10

// addRego adds what decides RegoPolicies: the filter for what needs no call, and
// the call to authz for the rest: one filter that is closed when authz is away and
// one that is open, of which the virtual host enables the one it needs.
func (c *Compiler) addRego(b *httpBuilder, p *model.Proxy, s selection) error {
	rego := c.addRegoRules(b, c.placeRego(p, s))
	if c.mesh.Deciders.Authz == "" {
		return nil
	}
	cluster, err := envoy.GRPCCluster(c.mesh, authzCluster, c.mesh.Deciders.Authz, "authz")
	if err != nil {
		return err
	}
	b.addCluster(cluster)
	b.addGeneric(filterRego, regoFilter(false))
	b.addGeneric(filterRegoOpen, regoFilter(true))
	if len(rego) == 0 {
		return nil
	}
	var names []string
	var refs []model.Ref
	open, body := true, false
	for _, pol := range rego {
		names = append(names, configpb.PolicyRef(pol.Namespace, pol.Name, pol.Fingerprint))
		open = open && (pol.FailOpen || pol.Observe)
		body = body || strings.Contains(pol.Module, "body")
		if !pol.FailOpen && !pol.Observe {
			refs = append(refs, pol.Ref)
		}
	}
	settings := &extauthzv3.CheckSettings{ContextExtensions: map[string]string{PoliciesKey: strings.Join(names, ",")}}
	if body {
		settings.WithRequestBody = &extauthzv3.BufferSettings{MaxRequestBytes: regoBodyBytes, AllowPartialMessage: true}
	}
	filter := filterRego
	if open {
		filter = filterRegoOpen
	}
	b.enable(filter, &extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_CheckSettings{CheckSettings: settings}})
	if len(refs) > 0 {
		b.name(nameRego, "RegoPolicy "+nameList(refs))
	}
	return nil
}

func regoFilter(open bool) *extauthzv3.ExtAuthz {
	return &extauthzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3,
		Services: &extauthzv3.ExtAuthz_GrpcService{GrpcService: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: authzCluster}},
			Timeout:         durationpb.New(authzTimeout),
		}},
		FailureModeAllow: open,
		StatusOnError:    &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden},
		// What the verified token says; the caller's SPIFFE ID is in every check.
		MetadataContextNamespaces: []string{jwtMetadata},
		FilterEnabledMetadata:     unlessDecided(),
		IncludeTlsSession:         true,
		StatPrefix:                "rego",
	}
}

// denyWithoutAuthz refuses everything where a closed RegoPolicy applies and the
// mesh has no authz to decide it.
func (c *Compiler) denyWithoutAuthz(deny *ruleSet, proxy *model.Proxy, s selection) {
	if c.mesh.Deciders.Authz != "" {
		return
	}
	for _, p := range c.placeRego(proxy, s) {
		if !p.whole() && !p.policy.FailOpen && !p.policy.Observe {
			deny.refuseAll(p.policy.Ref)
		}
	}
}

// refuseAll adds a policy that matches every request to a DENY set.
func (s *ruleSet) refuseAll(ref model.Ref) {
	if s.enforced == nil {
		s.enforced = &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{}}
	}
	s.enforced.Policies[ref.ID()] = &rbacv3.Policy{
		Permissions: []*rbacv3.Permission{andRules(nil)},
		Principals:  []*rbacv3.Principal{andIDs(nil)},
	}
}
