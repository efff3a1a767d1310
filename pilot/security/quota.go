package security

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/ratelimit/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	setcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	exprv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// quotaNoValue is the value of a dimension that the request does not have; such
// requests share one count.
const quotaNoValue = "-"

// quotaTimeout is how long Envoy waits for ratelimit; then whenUnavailable holds.
const quotaTimeout = 50 * time.Millisecond

// Rate limits of open policies are of stage 0, of closed ones of stage 1, each
// with a filter of its own.
const (
	stageOpen   = 0
	stageClosed = 1
)

// addQuota adds the call to ratelimit.
func (c *Compiler) addQuota(b *httpBuilder, p *model.Proxy, port model.WorkloadPort, s selection) error {
	if c.mesh.Deciders.RateLimit == "" {
		return nil
	}
	cluster, err := envoy.GRPCCluster(c.mesh, rateLimitCluster, c.mesh.Deciders.RateLimit, "ratelimit")
	if err != nil {
		return err
	}
	b.addCluster(cluster)
	if p.Type != model.GatewayProxy {
		b.addGeneric(filterPeerAddress, peerAddress())
	}
	limits, speaks := c.quotaLimits(s.quota)
	var done quotaDone
	done.addNames(b, slices.Concat(speaks, c.keptValues(limits, c.serviceOf(p, port))))
	if err := c.addAssigned(b, limits); err != nil {
		return err
	}
	b.addGeneric(filterQuotaMark, &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{}})
	markOpen(b, limits)
	b.addGeneric(filterQuota, quotaFilter(stageOpen))
	b.addGeneric(filterQuotaClosed, quotaFilter(stageClosed))
	var local quotaLocal
	local.addFilter(b)
	done.addFilters(b)
	defer done.enable(b)
	defer local.enable(b)
	var refs []model.Ref
	for _, limit := range limits {
		if limit.assigned() {
			continue
		}
		caller, err := c.dimensions(p, port, &limit)
		if err != nil {
			return fmt.Errorf("%s: limits[%d]: %w", limit.Policy.Ref, limit.Index, err)
		}
		if limit.local() {
			local.add(limit, caller)
		}
		filter, stage := filterQuota, uint32(stageOpen)
		if limit.closed() {
			filter, stage = filterQuotaClosed, stageClosed
		}
		b.RateLimits = append(b.RateLimits, &routev3.RateLimit{Stage: wrapperspb.UInt32(stage), Actions: actions(limit, caller, &done)})
		b.enable(filter, &ratelimitv3.RateLimitPerRoute{VhRateLimits: ratelimitv3.RateLimitPerRoute_INCLUDE})
		if p.Type != model.GatewayProxy && slices.ContainsFunc(limit.Per, func(d model.Dimension) bool { return d.Kind == "source.ip" }) {
			b.enable(filterPeerAddress, peerAddress())
		}
	}
	for _, limit := range limits {
		if limit.closed() && !slices.Contains(refs, limit.Policy.Ref) {
			refs = append(refs, limit.Policy.Ref)
		}
	}
	if len(refs) > 0 {
		b.name(nameQuota, "QuotaPolicy "+nameList(refs))
	}
	return nil
}

// closed says that a request is refused that ratelimit does not answer for.
func (l *quotaLimit) closed() bool { return l.Policy.FailClosed && !l.Policy.Observe }

// denyWithoutRateLimit refuses everything where a closed QuotaPolicy applies and
// the mesh has no ratelimit to decide it.
func (c *Compiler) denyWithoutRateLimit(deny *ruleSet, policies []*model.QuotaPolicy) {
	if c.mesh.Deciders.RateLimit != "" {
		return
	}
	for _, pol := range policies {
		if pol.FailClosed && !pol.Observe && len(pol.Limits) > 0 {
			deny.refuseAll(pol.Ref)
		}
	}
}

// peerAddressKey is where peerAddress leaves the address.
const peerAddressKey = "writ.peer.address"

// peerAddress keeps the address of the connection's other end, which expressions
// can see only as X-Forwarded-For tells it. A gateway's clients are meant to be
// told apart by that, a sidecar's callers could choose theirs with it.
func peerAddress() *setfilterstatev3.Config {
	return &setfilterstatev3.Config{OnRequestHeaders: []*setcommonv3.FilterStateValue{{
		Key:        &setcommonv3.FilterStateValue_ObjectKey{ObjectKey: peerAddressKey},
		FactoryKey: "envoy.string",
		Value: &setcommonv3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"},
			}},
		}},
	}}}
}

func quotaFilter(stage uint32) *ratelimitv3.RateLimit {
	domain := configpb.QuotaDomain
	if stage == stageClosed {
		domain = configpb.QuotaClosedDomain
	}
	return &ratelimitv3.RateLimit{
		Domain:          domain,
		Stage:           stage,
		Timeout:         durationpb.New(quotaTimeout),
		FailureModeDeny: stage == stageClosed,
		StatusOnError:   &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		RateLimitService: &ratelimitconfigv3.RateLimitServiceConfig{
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcService: &corev3.GrpcService{
				TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: rateLimitCluster}},
				Timeout:         durationpb.New(quotaTimeout),
			},
		},
		StatPrefix: "quota",
	}
}

// actions are what is asked of a limit, of the content that these routes go with: what an
// edit changes counts together with the rules of the same revision.
func actions(limit quotaLimit, caller []*routev3.RateLimit_Action, done *quotaDone) []*routev3.RateLimit_Action {
	limitOf := []*routev3.RateLimit_Action{
		policyEntry(configpb.PolicyRef(limit.Policy.Namespace, limit.Policy.Name, limit.Policy.Fingerprint), limit.condition),
		constant(configpb.QuotaLimitKey, strconv.Itoa(limit.Index)),
	}
	return done.entries(limitOf, caller, limit.QuotaLimit)
}

// dimensions are the entries that tell callers apart.
func (c *Compiler) dimensions(p *model.Proxy, port model.WorkloadPort, limit *quotaLimit) ([]*routev3.RateLimit_Action, error) {
	var out []*routev3.RateLimit_Action
	for _, d := range limit.Per {
		a, err := c.dimension(p, port, d, limit.kept(d))
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func constant(key, value string) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_GenericKey_{
		GenericKey: &routev3.RateLimit_Action_GenericKey{DescriptorKey: key, DescriptorValue: value},
	}}
}

// dimension gives the entry for one dimension. The expressions always come to a
// string that is not empty, since Envoy would leave the whole limit out otherwise. What
// is kept is in the filter state.
func (c *Compiler) dimension(p *model.Proxy, port model.WorkloadPort, d model.Dimension, kept bool) (*routev3.RateLimit_Action, error) {
	if name := c.serviceOf(p, port); d.Kind == "destination.service" && name != "" {
		return constant(d.Text, name), nil
	}
	if kept {
		return expression(d, keptValue(d)), nil
	}
	if value := requestValue(d); value != "" {
		return expression(d, value), nil
	}
	switch d.Kind {
	case "constant":
		return constant(d.Text, d.Arg), nil
	case "source.principal":
		return expression(d, spiffePart("^spiffe://(.+)$")), nil
	case "source.namespace":
		return expression(d, c.quotaNamespace("[^/]")), nil
	case "source.ip":
		if p.Type == model.GatewayProxy {
			return expression(d, `re.extract(source.address, '^\\[?([^\\]]+?)\\]?:[0-9]+$', '\\1')`), nil
		}
		return expression(d, "filter_state['"+peerAddressKey+"']"), nil
	case "request.method":
		return expression(d, "request.method"), nil
	case "request.auth.claims":
		return expression(d, claimExpression(eval.ClaimNames(d.Arg))), nil
	}
	return nil, fmt.Errorf("per: unknown dimension %q", d.Text)
}

// What texts of a request are to RE2: of ASCII, and of UTF-8 without surrogates and
// overlong forms, which "." of RE2 takes. A text of anything else makes the whole
// question unreadable to ratelimit, and with it the request pass all open limits.
const (
	asciiText = `^[\t -~]+$`
	utf8Text  = `^[\x00-\x{d7ff}\x{e000}-\x{10ffff}]+$`
)

// requestValue is an expression for a dimension that a route may change, "" for others.
func requestValue(d model.Dimension) string {
	none := "'" + quotaNoValue + "'"
	switch d.Kind {
	case "request.path":
		const path = "request.url_path"
		return path + ".matches(" + celString(asciiText) + ") ? " + path + " : " + none
	case "request.headers":
		name := celString(strings.ToLower(d.Arg))
		value := "request.headers[" + name + "]"
		return name + " in request.headers && (" + value + ".matches(" + celString(asciiText) + ") || " + value + ".matches(" + celString(utf8Text) + ")) ? " + value + " : " + none
	case "destination.service":
		return present("request.host")
	}
	return ""
}

// peerSAN is the caller's SPIFFE ID in expressions.
const peerSAN = "connection.uri_san_peer_certificate"

// spiffePart takes a part of the caller's SPIFFE ID, if there are conditions only where
// one of them holds.
func spiffePart(re string, oneOf ...string) string {
	test := "connection.mtls && " + peerSAN + ".matches('" + re + "')"
	if len(oneOf) > 0 {
		test += " && (" + strings.Join(oneOf, " || ") + ")"
	}
	return test + " ? re.extract(" + peerSAN + ", '" + re + `', '\\1') : '` + quotaNoValue + "'"
}

func present(value string) string {
	return value + " != '' ? " + value + " : '" + quotaNoValue + "'"
}

// claimExpression is the value of a claim that is a text, a number or a boolean. Envoy
// writes numbers with six digits, with which callers with long ones would be one.
func claimExpression(names []string) string {
	tests, value := claimSteps(names)
	kind := "type(" + value + ") == "
	tests = append(tests, "("+kind+"string && "+value+" != '' || "+kind+"double || "+kind+"bool)")
	whole := kind + "double && " + value + " > -" + wholeNumbers + " && " + value + " < " + wholeNumbers + " && double(int(" + value + ")) == " + value
	return strings.Join(tests, " && ") + " ? (" + whole + " ? int(" + value + ") : " + value + ") : '" + quotaNoValue + "'"
}

// wholeNumbers is below which a number of JSON is exact.
const wholeNumbers = "9007199254740992.0"

// claimSteps walks down the verified token: tests for each step, and the value. A step
// into what has no claims would fail, and Envoy leave the whole limit out.
func claimSteps(names []string) (tests []string, value string) {
	value = "metadata.filter_metadata"
	for i, name := range append([]string{jwtMetadata, jwtPayload}, names...) {
		if i > 2 {
			tests = append(tests, "type("+value+") == map")
		}
		tests = append(tests, celString(name)+" in "+value)
		value += "[" + celString(name) + "]"
	}
	return tests, value
}

// celString is a string literal of CEL.
func celString(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`).Replace(s) + "'"
}

func expression(d model.Dimension, text string) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_Extension{Extension: extension("envoy.rate_limit_descriptors.expr", &exprv3.Descriptor{
		DescriptorKey: d.Text,
		ExprSpecifier: &exprv3.Descriptor_Text{Text: text},
	})}}
}

func extension(name string, config proto.Message) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: name, TypedConfig: envoy.Any(config)}
}

// serviceOf gives the host name under which callers know a port of a workload,
// "" for gateways and ports of no service.
func (c *Compiler) serviceOf(p *model.Proxy, port model.WorkloadPort) string {
	for _, s := range c.mesh.Services {
		for _, e := range s.Endpoints {
			if e.Proxy != p {
				continue
			}
			for _, target := range e.Ports {
				if target == port.Port {
					return s.Hostname
				}
			}
		}
	}
	return ""
}
