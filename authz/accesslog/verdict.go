package accesslog

import (
	"regexp"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// Where an Envoy says what became of a request: pilot configures it so.
const (
	deniedByHeader = "x-writ-denied-by"
	writMetadata   = "writ"
	deniedBy       = "denied_by"
	rbacHTTP       = "envoy.filters.http.rbac"
	rbacTCP        = "envoy.filters.network.rbac"
	shadowResult   = "shadow_engine_result"
	shadowRule     = "shadow_effective_policy_id"
	dryRunDeny     = "istio_dry_run_deny_"
	dryRunAllow    = "istio_dry_run_allow_"
	observedLists  = "writ_dry_run_access_"
	rateLimit      = "envoy.filters.http.ratelimit"
	observed       = "observed"
	jwtAuthn       = "envoy.filters.http.jwt_authn"
	jwtPayload     = "payload"
	noRuleAllows   = " no rule allows"
	dryRunUnknown  = "AuthorizationPolicy (dry run)"
)

// Refused says whether the Envoy refused the request, and by which rule, as
// x-writ-denied-by says it.
func (r Report) Refused() (rule string, refused bool) {
	details := r.HTTP.GetResponse().GetResponseCodeDetails()
	if r.HTTP == nil {
		details = r.Common.GetConnectionTerminationDetails()
	}
	switch {
	case strings.HasPrefix(details, "rbac_access_denied"), strings.HasPrefix(details, "jwt_authn_access_denied"), strings.HasPrefix(details, "ext_authz_"):
	default:
		return "", false
	}
	if rule := r.HTTP.GetResponse().GetResponseHeaders()[deniedByHeader]; rule != "" {
		return rule, true
	}
	if rule := r.text(writMetadata, deniedBy); rule != "" {
		return rule, true // at a gateway, which takes the header off
	}
	return ruleOf(details), true
}

// UnknownKey says whether the Envoy refused a token by whose signature it may be that
// its issuer has a key that the Envoy does not know: no key has its kid, or none of the
// keys that could verify it does.
func (r Report) UnknownKey() bool {
	switch r.HTTP.GetResponse().GetResponseCodeDetails() {
	case "jwt_authn_access_denied{Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt}", "jwt_authn_access_denied{Jwt_verification_fails}":
		return true
	}
	return false
}

// ruleInDetails is how RBAC says which rule matched, with underscores for spaces.
var ruleInDetails = regexp.MustCompile(`^rbac_access_denied_matched_policy\[([A-Za-z]+)_(.+?)(?:_rule_([0-9]+)|_malformed)?\]$`)

func ruleOf(details string) string {
	m := ruleInDetails.FindStringSubmatch(details)
	switch {
	case m == nil:
		return details
	case m[3] == "":
		return m[1] + " " + m[2]
	}
	return m[1] + " " + m[2] + " rule " + m[3]
}

// Observed are the rules that would have refused.
func (r Report) Observed() []string {
	rbac := rbacHTTP
	if r.HTTP == nil {
		rbac = rbacTCP
	}
	var out []string
	for _, prefix := range []string{observedLists, dryRunDeny} {
		if r.text(rbac, prefix+shadowResult) == "denied" {
			out = append(out, r.text(rbac, prefix+shadowRule))
		}
	}
	if r.text(rbac, dryRunAllow+shadowResult) == "denied" {
		policies := r.Common.GetCustomTags()[configpb.ReportDryRunAllow]
		if policies == "" || policies == "-" {
			policies = dryRunUnknown
		}
		out = append(out, policies+noRuleAllows)
	}
	if names := r.text(rateLimit, observed); names != "" {
		out = append(out, strings.Split(names, ", ")...)
	}
	return out
}

// Claims are those of the token that the Envoy verified; nil without one.
func (r Report) Claims() map[string]any {
	payload := r.metadata(jwtAuthn).GetFields()[jwtPayload].GetStructValue()
	if payload == nil {
		return nil
	}
	return payload.AsMap()
}

func (r Report) metadata(filter string) *structpb.Struct {
	return r.Common.GetMetadata().GetFilterMetadata()[filter]
}

func (r Report) text(filter, key string) string {
	return r.metadata(filter).GetFields()[key].GetStringValue()
}

// Method is the request's; empty if Envoy does not know it.
func (r Report) Method() string {
	m := r.HTTP.GetRequest().GetRequestMethod().String()
	if m == "METHOD_UNSPECIFIED" || r.HTTP == nil {
		return ""
	}
	return m
}

// Path is what the proxy itself received.
func (r Report) Path() string { return r.HTTP.GetRequest().GetPath() }

// Source is the address of the connection's other end, and Remote the client's as
// x-forwarded-for tells it.
func (r Report) Source() (direct, remote string) {
	return r.Common.GetDownstreamDirectRemoteAddress().GetSocketAddress().GetAddress(),
		r.Common.GetDownstreamRemoteAddress().GetSocketAddress().GetAddress()
}

// Destination is where the request arrived.
func (r Report) Destination() (address string, port uint32) {
	a := r.Common.GetDownstreamLocalAddress().GetSocketAddress()
	return a.GetAddress(), a.GetPortValue()
}
