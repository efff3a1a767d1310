package security

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	headertometadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// DeniedByHeader is the response header of a refusal: "<Kind> <namespace>/<name>"
// and then " rule N", " limit N", " no rule allows" or, in parentheses, what is
// wrong with a token or who does not answer.
const DeniedByHeader = "x-writ-denied-by"

// Access log operators that give what DeniedByHeader says; "-" for requests that
// no policy refused. A gateway takes the header away from the response, so it
// has it from metadata.
const (
	DeniedByOperator        = "%RESP(X-WRIT-DENIED-BY)%"
	DeniedByGatewayOperator = "%DYNAMIC_METADATA(writ:denied_by)%"
)

// HTTPLogFields are access log fields, by name, for what policies recorded
// without refusing: AUDIT and the dry runs of ALLOW and DENY. A dry run of ALLOW
// that no rule lets pass has the result "denied" and the names of its policies.
func HTTPLogFields() map[string]string {
	fields := recorded(rbacHTTPMetadata)
	fields["audit"] = "%DYNAMIC_METADATA(envoy.common:access_log_hint)%"
	fields["dry_run_allow_policies"] = "%METADATA(VIRTUAL_HOST:" + metadataNamespace + ":" + nameDryRunAllow + ")%"
	return fields
}

// TCPLogFields are the same for connections.
func TCPLogFields() map[string]string { return recorded(rbacTCPMetadata) }

func recorded(filter string) map[string]string {
	operator := func(key string) string { return "%DYNAMIC_METADATA(" + filter + ":" + key + ")%" }
	return map[string]string{
		"dry_run_allow_result": operator(dryRunAllowStatPrefix + shadowResult),
		"dry_run_allow_rule":   operator(dryRunAllowStatPrefix + "shadow_effective_policy_id"),
		"dry_run_deny_result":  operator(dryRunDenyStatPrefix + shadowResult),
		"dry_run_deny_rule":    operator(dryRunDenyStatPrefix + "shadow_effective_policy_id"),
	}
}

// DeniedByAnnotation is the annotation that, "true" on a Gateway object, lets its
// clients see DeniedByHeader.
const DeniedByAnnotation = "policy.writ.mesh/denied-by"

// What virtual hosts leave for the local replies under metadataNamespace.
const (
	metadataNamespace = "writ"
	nameAllow         = "allow"
	nameDryRunAllow   = "dry_run_allow"
	nameJWT           = "jwt"
	nameCustom        = "custom"
	nameRego          = "rego"
	nameQuota         = "quota"
)

// quotaBucketMetadata is where the filters of assigned limits say which counter they
// looked at.
const quotaBucketMetadata = "envoy.extensions.http_filters.rate_limit_quota.bucket"

// refusedBy matches the code details of a rule's refusal.
const refusedBy = "^rbac_access_denied_matched_policy.([A-Za-z]+)_(.+)"

// localReply names the policy behind each refusal of this proxy. RBAC writes its
// decision to metadata only after the reply is made, so the rule is read out of
// the response code details, where spaces have become underscores. The first
// mapper that fits is used.
//
// It depends on nothing, so that no policy changes a listener with it.
func localReply() *hcmv3.LocalReplyConfig {
	// A rule of a CUSTOM policy has matched.
	const custom = `'` + rbacHTTPMetadata + `' in metadata.filter_metadata && '` + customStatPrefix + `shadow_effective_policy_id' in metadata.filter_metadata['` + rbacHTTPMetadata + `']`
	const customRule = "%DYNAMIC_METADATA(" + rbacHTTPMetadata + ":" + customStatPrefix + "shadow_effective_policy_id)%"
	always := corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	absent := corev3.HeaderValueOption_ADD_IF_ABSENT
	return &hcmv3.LocalReplyConfig{Mappers: slices.Concat(malformedReplies(), regoReplies(), []*hcmv3.ResponseMapper{
		// The ALLOW filter found nothing.
		mapper(`response.code_details == 'rbac_access_denied_matched_policy[none]'`, always,
			"%METADATA(VIRTUAL_HOST:writ:allow)%"),
		mapper(`response.code_details.matches('`+refusedBy+`_rule_[0-9]+.$')`, always,
			`%CEL(re.extract(response.code_details, '`+refusedBy+`_rule_([0-9]+).$', '\\1 \\2 rule \\3'))%`),
		mapper(`response.code_details.matches('`+refusedBy+`.$')`, always,
			`%CEL(re.extract(response.code_details, '`+refusedBy+`.$', '\\1 \\2'))%`),
		mapper(`response.code_details.startsWith('jwt_authn_access_denied')`, always,
			"%METADATA(VIRTUAL_HOST:writ:jwt)% (%CEL(re.extract(response.code_details, '^jwt_authn_access_denied.(.*).$', '\\\\1'))%)"),
		// A decider that answers gives the header itself. One that does not answer is
		// told from one that refuses.
		mapper(`response.code_details == 'ext_authz_error' && `+custom, absent, customRule+" (the provider does not answer)"),
		mapper(`response.code_details == 'ext_authz_error'`, absent, "%METADATA(VIRTUAL_HOST:writ:rego)% (authz does not answer)"),
		mapper(`response.code_details.startsWith('ext_authz_') && `+custom, absent, customRule),
		mapper(`response.code_details.startsWith('ext_authz_')`, absent, "%METADATA(VIRTUAL_HOST:writ:rego)%"),
		mapper(`response.code_details == 'rate_limiter_error'`, absent, "%METADATA(VIRTUAL_HOST:writ:quota)% (ratelimit does not answer)"),
		// The filters of assigned limits give no details until after Envoy 1.40. Each says
		// which counter it looks at, the one that refuses last of all.
		mapper(`(response.code_details == '' || response.code_details == 'rate_limited_by_quota') && response.code == 429 && '`+quotaBucketMetadata+`' in metadata.filter_metadata`, absent,
			`%CEL(re.extract(metadata.filter_metadata['`+quotaBucketMetadata+`']['`+configpb.QuotaCounterKey+`'], '^([^/?]+/[^/?]+)/([0-9]+)([?].*)?$', 'QuotaPolicy \\1 limit \\2'))%`),
		mapper(`response.code_details == 'request_rate_limited' || response.code_details.startsWith('rate_limit')`, absent,
			"%METADATA(VIRTUAL_HOST:writ:quota)%"),
	})}
}

func mapper(expression string, action corev3.HeaderValueOption_HeaderAppendAction, value string) *hcmv3.ResponseMapper {
	return &hcmv3.ResponseMapper{
		Filter: celFilter(expression),
		HeadersToAdd: []*corev3.HeaderValueOption{{
			Header:       &corev3.HeaderValue{Key: DeniedByHeader, Value: value},
			AppendAction: action,
		}},
	}
}

// stripDeniedBy moves the header of a refusal, the gateway's own or a sidecar's,
// into metadata for the access log. It is the first filter and so sees responses
// last. With the annotation the header stays on the response as well.
func stripDeniedBy(m *model.Mesh, p *model.Proxy) (string, proto.Message) {
	show := false
	for _, g := range m.Gateways {
		if g.Annotations[DeniedByAnnotation] == "true" && model.SelectorMatches(g.Spec.GetSelector(), p.Labels) {
			show = true
		}
	}
	return filterDeniedBy, &headertometadatav3.Config{ResponseRules: []*headertometadatav3.Config_Rule{{
		Header:          DeniedByHeader,
		OnHeaderPresent: &headertometadatav3.Config_KeyValuePair{MetadataNamespace: metadataNamespace, Key: "denied_by"},
		Remove:          !show,
	}}}
}
