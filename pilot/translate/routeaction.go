package translate

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoy"
)

// defaultRetryOn is what Istio retries by default: only what cannot have been
// processed, and what the server itself marked as worth another try.
const defaultRetryOn = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"

// retriableCodes is the condition that status codes in retryOn stand for.
const retriableCodes = "retriable-status-codes"

// setTimeout sets the timeout of the whole request; none if the rule says none.
func setTimeout(a *routev3.RouteAction, d *durationpb.Duration) {
	a.Timeout = dur(0)
	if d.AsDuration() > 0 {
		a.Timeout = d
		return
	}
	// A gRPC client's own deadline counts. Envoy ignores timeout beside this, so
	// a rule's timeout goes without.
	a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{GrpcTimeoutHeaderMax: dur(0)}
}

// retryPolicy is nil where retries are switched off. With a hash the same
// endpoint is the right one again.
func retryPolicy(in *networking.HTTPRetry, hashed bool) *routev3.RetryPolicy {
	if in != nil && in.GetAttempts() <= 0 {
		return nil
	}
	out := &routev3.RetryPolicy{RetryOn: defaultRetryOn, NumRetries: u32(2), HostSelectionRetryMaxAttempts: 5}
	elsewhere := !hashed
	if in != nil {
		out.NumRetries = u32(uint32(in.GetAttempts()))
		out.PerTryTimeout = in.GetPerTryTimeout()
		if in.GetRetryOn() != "" {
			out.RetryOn, out.RetriableStatusCodes = retryOn(in.GetRetryOn())
		}
		if in.GetRetryIgnorePreviousHosts() != nil {
			elsewhere = in.GetRetryIgnorePreviousHosts().GetValue()
		}
		if in.GetRetryRemoteLocalities().GetValue() {
			out.RetryPriority = &routev3.RetryPolicy_RetryPriority{
				Name: "envoy.retry_priorities.previous_priorities",
				ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{
					TypedConfig: envoy.Any(&previousprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: 2}),
				},
			}
		}
		if in.GetBackoff() != nil {
			out.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: in.GetBackoff()}
		}
	}
	retryUnreached(out)
	if elsewhere {
		out.RetryHostPredicate = []*routev3.RetryPolicy_RetryHostPredicate{{
			Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
				TypedConfig: envoy.Any(&previoushostsv3.PreviousHostsPredicate{}),
			},
		}}
	}
	return out
}

// retryOn splits conditions from status codes, which Istio allows in one list.
func retryOn(in string) (conditions string, statusCodes []uint32) {
	var names []string
	for _, part := range strings.Split(in, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		if n, err := strconv.ParseUint(part, 10, 16); err == nil && http.StatusText(int(n)) != "" {
			statusCodes = append(statusCodes, uint32(n))
			continue
		}
		names = append(names, part)
	}
	if len(statusCodes) > 0 && !slices.Contains(names, retriableCodes) {
		names = append(names, retriableCodes)
	}
	return strings.Join(names, ","), statusCodes
}

func rewritePath(a *routev3.RouteAction, rw *networking.HTTPRewrite) {
	if re := rw.GetUriRegexRewrite(); re != nil {
		a.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
			Pattern: &matcherv3.RegexMatcher{Regex: re.GetMatch()}, Substitution: re.GetRewrite(),
		}
		return
	}
	a.PrefixRewrite = rw.GetUri()
}

// redirect answers with another address. "From the request's port" can be
// written down because a route is made for one port.
func (b *routeBuilder) redirect(in *networking.HTTPRedirect) *routev3.Route_Redirect {
	out := &routev3.RedirectAction{HostRedirect: in.GetAuthority(), ResponseCode: redirectCode(in.GetRedirectCode())}
	if in.GetPrefixRewrite() != "" {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: in.GetPrefixRewrite()}
	} else if in.GetUri() != "" {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: in.GetUri()}
	}
	if scheme := in.GetScheme(); scheme != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: scheme}
	}
	switch p := in.GetRedirectPort().(type) {
	case *networking.HTTPRedirect_Port:
		out.PortRedirect = p.Port
	case *networking.HTTPRedirect_DerivePort:
		if p.DerivePort == networking.HTTPRedirect_FROM_REQUEST_PORT {
			out.PortRedirect = b.port
			if b.bound != 0 {
				out.PortRedirect = b.bound
			}
		}
	}
	if out.PortRedirect == b.schemePort(in) {
		out.PortRedirect = 0
	}
	return &routev3.Route_Redirect{Redirect: out}
}

// schemePort is the port that a redirect's URL has without one in it, 0 if nobody knows.
func (b *routeBuilder) schemePort(in *networking.HTTPRedirect) uint32 {
	switch scheme := in.GetScheme(); {
	case scheme == "https" || scheme == "" && b.tls:
		return 443
	case scheme == "http" || scheme == "":
		return 80
	}
	return 0
}

// defaultPort is the port of the scheme if a redirect asks for it and keeps the request's
// host, 0 otherwise.
func (b *routeBuilder) defaultPort(in *networking.HTTPRedirect) uint32 {
	port := b.schemePort(in)
	derived, derives := in.GetRedirectPort().(*networking.HTTPRedirect_DerivePort)
	if in.GetAuthority() != "" || in.GetPort() != port && !(derives && derived.DerivePort == networking.HTTPRedirect_FROM_PROTOCOL_DEFAULT) {
		return 0
	}
	return port
}

// leavingPort is a redirect for requests whose host has a port, which goes to another one.
// Of hosts without a port the plain one leaves out what the scheme says.
func leavingPort(r *routev3.Route, port uint32) *routev3.Route {
	out := proto.CloneOf(r)
	out.GetRedirect().PortRedirect = port
	out.Match.Headers = append(out.Match.Headers, &routev3.HeaderMatcher{Name: ":authority", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
		MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: `.*:[0-9]+`}},
	}}})
	return out
}

func redirectCode(code uint32) routev3.RedirectAction_RedirectResponseCode {
	switch code {
	case http.StatusFound:
		return routev3.RedirectAction_FOUND
	case http.StatusSeeOther:
		return routev3.RedirectAction_SEE_OTHER
	case http.StatusTemporaryRedirect:
		return routev3.RedirectAction_TEMPORARY_REDIRECT
	case http.StatusPermanentRedirect:
		return routev3.RedirectAction_PERMANENT_REDIRECT
	}
	return routev3.RedirectAction_MOVED_PERMANENTLY
}

// maxDirectResponse is how many bytes a direct response may have; Envoy's own
// limit of 4 KiB would refuse the whole route configuration.
const maxDirectResponse = 1 << 20

func directResponse(in *networking.HTTPDirectResponse) *routev3.Route_DirectResponse {
	out := &routev3.DirectResponseAction{Status: in.GetStatus()}
	switch body := in.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = inlineString(body.String_)
	case *networking.HTTPBody_Bytes:
		out.Body = inlineBytes(body.Bytes)
	}
	return &routev3.Route_DirectResponse{DirectResponse: out}
}

func inlineString(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}

// mirrors copies requests to other destinations and drops the answers.
func (b *routeBuilder) mirrors(a *routev3.RouteAction, rule *httpRoute) error {
	add := func(d *networking.Destination, percent float64) error {
		if d == nil || percent <= 0 {
			return nil
		}
		cluster, _, err := b.destination(d, rule.namespace)
		if err != nil {
			return err
		}
		a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, &routev3.RouteAction_RequestMirrorPolicy{
			Cluster: cluster, RuntimeFraction: runtimePercent(percent), TraceSampled: no(),
		})
		return nil
	}
	percent := 100.0
	switch {
	case rule.GetMirrorPercentage() != nil:
		percent = rule.GetMirrorPercentage().GetValue()
	//nolint:staticcheck // the older spelling of mirrorPercentage
	case rule.GetMirrorPercent() != nil:
		percent = float64(rule.GetMirrorPercent().GetValue())
	}
	if err := add(rule.GetMirror(), percent); err != nil {
		return err
	}
	for _, m := range rule.GetMirrors() {
		percent := 100.0
		if m.GetPercentage() != nil {
			percent = m.GetPercentage().GetValue()
		}
		if err := add(m.GetDestination(), percent); err != nil {
			return err
		}
	}
	return nil
}

// fault delays or aborts; nil if there is nothing to do.
func fault(in *networking.HTTPFaultInjection) *faultv3.HTTPFault {
	out := &faultv3.HTTPFault{}
	if d := in.GetDelay(); d.GetFixedDelay() != nil {
		percent := float64(d.GetPercent()) //nolint:staticcheck // the older spelling of percentage
		if d.GetPercentage() != nil {
			percent = d.GetPercentage().GetValue()
		}
		out.Delay = &faultcommonv3.FaultDelay{
			Percentage:         percentOf(percent),
			FaultDelaySecifier: &faultcommonv3.FaultDelay_FixedDelay{FixedDelay: d.GetFixedDelay()},
		}
	}
	if a := in.GetAbort(); a != nil {
		// Without a percentage no request is aborted, as Istio documents it.
		abort := &faultv3.FaultAbort{Percentage: percentOf(a.GetPercentage().GetValue())}
		switch e := a.GetErrorType().(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			abort.ErrorType = &faultv3.FaultAbort_HttpStatus{HttpStatus: uint32(e.HttpStatus)}
			out.Abort = abort
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			if code, ok := grpcCode(e.GrpcStatus); ok {
				abort.ErrorType = &faultv3.FaultAbort_GrpcStatus{GrpcStatus: code}
				out.Abort = abort
			}
		}
	}
	if out.Delay == nil && out.Abort == nil {
		return nil
	}
	return out
}

// grpcCode reads a gRPC status by name (UNAVAILABLE) or number.
func grpcCode(text string) (uint32, bool) {
	var c codes.Code
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return uint32(n), n <= uint64(codes.Unauthenticated)
	}
	if err := c.UnmarshalJSON([]byte(strconv.Quote(text))); err != nil {
		return 0, false
	}
	return uint32(c), true
}

func cors(in *networking.CorsPolicy) *corsv3.CorsPolicy {
	if in == nil {
		return nil
	}
	out := &corsv3.CorsPolicy{
		FilterEnabled:                runtimePercent(100),
		AllowMethods:                 strings.Join(in.GetAllowMethods(), ","),
		AllowHeaders:                 strings.Join(in.GetAllowHeaders(), ","),
		ExposeHeaders:                strings.Join(in.GetExposeHeaders(), ","),
		AllowCredentials:             in.GetAllowCredentials(),
		ForwardNotMatchingPreflights: yes(),
	}
	if in.GetUnmatchedPreflights() == networking.CorsPolicy_IGNORE {
		out.ForwardNotMatchingPreflights = no()
	}
	for _, o := range in.GetAllowOrigins() {
		if m := stringMatcher(o); m != nil {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
		}
	}
	if len(in.GetAllowOrigins()) == 0 {
		for _, o := range in.GetAllowOrigin() { //nolint:staticcheck // the older spelling of allowOrigins
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, exact(o))
		}
	}
	if in.GetMaxAge() != nil {
		out.MaxAge = strconv.FormatInt(in.GetMaxAge().GetSeconds(), 10)
	}
	return out
}

// hashPolicy says what of a request the hash is made of.
func hashPolicy(in *networking.LoadBalancerSettings_ConsistentHashLB) []*routev3.RouteAction_HashPolicy {
	out := &routev3.RouteAction_HashPolicy{}
	switch k := in.GetHashKey().(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: k.HttpHeaderName}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		cookie := &routev3.RouteAction_HashPolicy_Cookie{Name: k.HttpCookie.GetName(), Ttl: k.HttpCookie.GetTtl(), Path: k.HttpCookie.GetPath()}
		for _, a := range k.HttpCookie.GetAttributes() {
			cookie.Attributes = append(cookie.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
		}
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: cookie}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		if !k.UseSourceIp {
			return nil
		}
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: k.HttpQueryParameterName},
		}
	default:
		return nil
	}
	return []*routev3.RouteAction_HashPolicy{out}
}
