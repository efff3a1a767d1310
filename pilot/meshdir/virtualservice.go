package meshdir

import (
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// checkVirtualService follows the rules of Istio's validation of the kind.
func checkVirtualService(c *checker) {
	vs := c.object.spec.(*networking.VirtualService)
	mesh := isForMesh(vs)
	c.gatewayNames("spec.gateways", vs.Gateways)
	c.virtualHosts(vs, mesh)
	if len(vs.Http)+len(vs.Tls)+len(vs.Tcp) == 0 {
		c.errorf("spec", "there is no route: give http, tls or tcp")
	}
	delegate := len(vs.Hosts) == 0
	for i, route := range vs.Http {
		at := index("spec.http", i)
		c.httpRoute(at, route, delegate)
		for j, match := range route.Match {
			c.claimMatches(index(at+".match", j), match, mesh)
		}
	}
	for i, route := range vs.Tls {
		c.tlsRoute(index("spec.tls", i), route, vs)
	}
	for i, route := range vs.Tcp {
		at := index("spec.tcp", i)
		for j, match := range route.Match {
			c.l4Match(index(at+".match", j), match.DestinationSubnets, match.Port, match.SourceLabels, match.Gateways)
			c.withoutEffect(match.SourceSubnet != "", index(at+".match", j)+".sourceSubnet")
		}
		c.l4Destinations(at, route.Route)
	}
	c.exportTo(vs.ExportTo, false, false)
	c.unreachableRoutes(vs)
}

func (c *checker) gatewayNames(at string, names []string) {
	for i, name := range names {
		ns, gateway, qualified := strings.Cut(name, "/")
		switch {
		case !qualified && hostProblem(name, false) != "":
			c.errorf(index(at, i), "%q is not the name of a Gateway: write name or namespace/name", shorten(name))
		case qualified && (!isLabel(ns) || !isLabel(gateway)):
			c.errorf(index(at, i), "%q is not namespace/name of a Gateway", shorten(name))
		case !qualified && strings.Contains(name, "."):
			c.warnf(index(at, i), "%q is an old form: write %q", shorten(name), model.ResolveGateway(name, c.object.meta.Namespace))
		}
	}
}

func (c *checker) virtualHosts(vs *networking.VirtualService, mesh bool) {
	if len(vs.Hosts) == 0 {
		switch {
		case len(vs.Gateways) > 0:
			c.errorf("spec.gateways", "without hosts this is a delegate, which takes the gateways of the VirtualService that refers to it: give hosts, or remove gateways")
		case len(vs.Tls)+len(vs.Tcp) > 0:
			c.errorf("spec", "without hosts this is a delegate, which has only http routes: give hosts")
		}
	}
	for i, host := range vs.Hosts {
		at := index("spec.hosts", i)
		switch {
		case isIP(host):
		case !mesh && len(vs.Tls) > 0 && crossClusterForm.MatchString(host):
		case mesh && host == "*":
			c.errorf(at, "the host * is only for gateways: name the hosts, or list a Gateway in gateways")
		default:
			c.host(at, host)
		}
		for _, other := range vs.Hosts[:i] {
			if model.HostsOverlap(host, other) {
				c.errorf(at, "%q overlaps with %q: remove one", host, other)
			}
		}
	}
}

// claimMatches refuses routing by JWT claims outside of gateways.
func (c *checker) claimMatches(at string, match *networking.HTTPMatchRequest, mesh bool) {
	for _, place := range claimMatches(match) {
		if mesh {
			c.errorf(at+place, "routing by JWT claims works in gateways only: list a Gateway in gateways, without mesh")
		}
	}
}

// isForMesh says that the routes are for callers in the mesh, those of gateways or not.
func isForMesh(vs *networking.VirtualService) bool {
	return len(vs.Gateways) == 0 || slices.Contains(vs.Gateways, model.MeshGateway)
}

// isClaimMatch: @request.auth.claims.a.b or @request.auth.claims[a][b].
func isClaimMatch(name string) bool {
	const prefix = "@request.auth.claims"
	if len(name) <= len(prefix) || !strings.EqualFold(name[:len(prefix)], prefix) {
		return false
	}
	claim := name[len(prefix):]
	return claim[0] == '.' && len(claim) > 1 || claim[0] == '[' && strings.HasSuffix(claim, "]") && len(claim) > 2
}

func (c *checker) httpRoute(at string, route *networking.HTTPRoute, delegate bool) {
	c.routeConflicts(at, route, delegate)
	for i, match := range route.Match {
		c.httpMatch(index(at+".match", i), match)
	}
	c.headerChanges(at+".headers", route.Headers)
	c.authorityOnce(at, route)
	c.cors(at+".corsPolicy", route.CorsPolicy)
	c.fault(at+".fault", route.Fault)
	c.mirrors(at, route)
	c.redirect(at+".redirect", route)
	c.directResponse(at+".directResponse", route.DirectResponse)
	c.retries(at+".retries", route.Retries)
	c.rewrite(at+".rewrite", route.Rewrite)
	c.httpDestinations(at, route.Route)
	c.duration(at+".timeout", route.Timeout)
}

func (c *checker) routeConflicts(at string, route *networking.HTTPRoute, delegate bool) {
	if route.Delegate != nil {
		switch {
		case delegate:
			c.errorf(at+".delegate", "a delegate cannot delegate further: move the route into the first VirtualService")
		case route.Redirect != nil || len(route.Route) > 0 || route.DirectResponse != nil:
			c.errorf(at, "a route that delegates cannot have route, redirect or directResponse")
		}
		return
	}
	var actions []string
	for name, set := range map[string]bool{"route": len(route.Route) > 0, "redirect": route.Redirect != nil, "directResponse": route.DirectResponse != nil} {
		if set {
			actions = append(actions, name)
		}
	}
	slices.Sort(actions)
	switch {
	case len(actions) == 0:
		c.errorf(at, "one of route, redirect or directResponse is needed")
	case len(actions) > 1:
		c.errorf(at, "only one of %s can be given", strings.Join(actions, " and "))
	case actions[0] != "route" && route.Fault != nil:
		c.errorf(at+".fault", "cannot go with %s", actions[0])
	case actions[0] != "route" && route.Rewrite != nil:
		c.errorf(at+".rewrite", "cannot go with %s", actions[0])
	}
	if route.Mirror != nil && len(route.Mirrors) > 0 {
		c.errorf(at+".mirrors", "only one of mirror and mirrors can be given")
	}
}

func (c *checker) httpMatch(at string, match *networking.HTTPMatchRequest) {
	for name, m := range match.Headers {
		if model.IgnoredHeaderKey(name) {
			c.warnf(at+".headers["+name+"]", "it is ignored, as in Istio's documentation: write %s beside headers", name)
		}
		c.matchHeaderName(at+".headers["+name+"]", name)
		c.stringMatch(at+".headers["+name+"]", m)
	}
	for name, m := range match.WithoutHeaders {
		c.matchHeaderName(at+".withoutHeaders["+name+"]", name)
		if m.GetRegex() != "*" { // an idiom for "any value" that Istio accepts
			c.stringMatch(at+".withoutHeaders["+name+"]", m)
		}
	}
	if re, ok := match.Uri.GetMatchType().(*networking.StringMatch_Regex); ok {
		c.regex(at+".uri.regex", re.Regex)
	}
	c.stringMatch(at+".scheme", match.Scheme)
	c.stringMatch(at+".method", match.Method)
	c.stringMatch(at+".authority", match.Authority)
	for name, m := range match.QueryParams {
		c.stringMatch(at+".queryParams["+name+"]", m)
	}
	if ns := match.SourceNamespace; ns != "" && !isLabel(ns) {
		c.errorf(at+".sourceNamespace", "%q is not a namespace", shorten(ns))
	}
	c.l4Match(at, nil, match.Port, match.SourceLabels, match.Gateways)
}

func (c *checker) l4Match(at string, subnets []string, port uint32, labels map[string]string, gateways []string) {
	for i, s := range subnets {
		c.network(index(at+".destinationSubnets", i), s)
	}
	if port != 0 {
		c.port(at+".port", port)
	}
	c.labels(at+".sourceLabels", labels)
	c.gatewayNames(at+".gateways", gateways)
}

func (c *checker) matchHeaderName(at, name string) {
	pseudo := []string{":method", ":scheme", ":authority", ":path", ":status"}
	if !isClaimMatch(name) && !slices.Contains(pseudo, name) && !headerNameForm.MatchString(name) {
		hint := ""
		if strings.HasPrefix(name, "@") {
			hint = ": a claim is @request.auth.claims.NAME or @request.auth.claims[NAME]"
		}
		c.errorf(at, "%q is not the name of a header%s", shorten(name), hint)
	}
}

func (c *checker) stringMatch(at string, m *networking.StringMatch) {
	switch v := m.GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		if v.Prefix == "" {
			c.errorf(at+".prefix", "an empty prefix matches everything: remove the condition")
		}
	case *networking.StringMatch_Regex:
		c.regex(at+".regex", v.Regex)
	}
}

func (c *checker) headerChanges(at string, h *networking.Headers) {
	c.headerOperations(at+".request", h.GetRequest(), true)
	c.headerOperations(at+".response", h.GetResponse(), false)
}

func (c *checker) headerOperations(at string, o *networking.Headers_HeaderOperations, request bool) {
	for name, value := range o.GetSet() {
		c.headerChange(at+".set["+name+"]", name, value, request)
	}
	for name, value := range o.GetAdd() {
		c.headerChange(at+".add["+name+"]", name, value, request)
	}
	for i, name := range o.GetRemove() {
		c.headerChange(index(at+".remove", i), name, "", false)
	}
}

func (c *checker) headerChange(at, name, value string, authority bool) {
	internal := strings.HasPrefix(name, ":") || strings.EqualFold(name, "host")
	switch {
	case name == "":
		c.errorf(at, "a header name is missing")
	case internal && !(authority && isAuthority(name)):
		c.errorf(at, "the header %s cannot be changed here", name)
	case !internal && !headerNameForm.MatchString(name):
		c.errorf(at, "%q is not the name of a header", shorten(name))
	}
	if problem := headerValueProblem(value); problem != "" {
		c.errorf(at, "%s", problem)
	}
}

func isAuthority(name string) bool {
	return strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host")
}

// headerValueProblem checks a header value and the %COMMAND% of Envoy in it.
func headerValueProblem(value string) string {
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return "the header value has control characters"
	}
	for rest := strings.ReplaceAll(value, "%%", ""); ; {
		_, after, ok := strings.Cut(rest, "%")
		if !ok {
			return ""
		}
		command, next, ok := strings.Cut(after, "%")
		if open := strings.IndexByte(after, '('); ok && open >= 0 && open < len(command) {
			end := strings.Index(after, ")")
			if end < 0 {
				return "the header value has an unclosed (: close it"
			}
			tail := after[end+1:]
			if i := strings.IndexByte(tail, '%'); i >= 0 {
				rest = tail[i+1:]
				continue
			}
			ok = false
		}
		if !ok || command == "" {
			return "the header value has a single %: write %% for the sign itself, or %COMMAND%"
		}
		rest = next
	}
}

func (c *checker) authorityOnce(at string, route *networking.HTTPRoute) {
	count := 0
	if route.Rewrite.GetAuthority() != "" {
		count++
	}
	for _, headers := range []map[string]string{route.Headers.GetRequest().GetSet(), route.Headers.GetRequest().GetAdd()} {
		for name := range headers {
			if isAuthority(name) {
				count++
			}
		}
	}
	if count > 1 {
		c.errorf(at, "the authority is set more than once: keep one of rewrite.authority and the Host header")
	}
}

func (c *checker) cors(at string, p *networking.CorsPolicy) {
	if p == nil {
		return
	}
	for i, origin := range p.AllowOrigins {
		m := origin.GetMatchType()
		if m == nil || origin.GetExact()+origin.GetPrefix()+origin.GetRegex() == "" {
			c.errorf(index(at+".allowOrigins", i), "an origin is missing: give exact, prefix or regex")
		} else if re, ok := m.(*networking.StringMatch_Regex); ok {
			c.regex(index(at+".allowOrigins", i)+".regex", re.Regex)
		}
	}
	methods := []string{"*", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"}
	for i, m := range p.AllowMethods {
		if !slices.Contains(methods, m) {
			c.errorf(index(at+".allowMethods", i), "unknown method %q%s", shorten(m), didYouMean(m, methods))
		}
	}
	for field, names := range map[string][]string{".allowHeaders": p.AllowHeaders, ".exposeHeaders": p.ExposeHeaders} {
		for i, name := range names {
			if !headerNameForm.MatchString(name) {
				c.errorf(index(at+field, i), "%q is not the name of a header", shorten(name))
			}
		}
	}
	c.duration(at+".maxAge", p.MaxAge)
	if p.MaxAge.GetNanos() > 0 {
		c.errorf(at+".maxAge", "must be whole seconds")
	}
}

func (c *checker) fault(at string, f *networking.HTTPFaultInjection) {
	if f == nil {
		return
	}
	if f.Abort == nil && f.Delay == nil {
		c.errorf(at, "give abort, delay or both")
	}
	if a := f.Abort; a != nil {
		c.faultPercentage(at+".abort.percentage", a.Percentage)
		switch e := a.ErrorType.(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			c.status(at+".abort.httpStatus", e.HttpStatus)
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			if !slices.Contains(grpcStatuses(), e.GrpcStatus) {
				c.errorf(at+".abort.grpcStatus", "unknown gRPC status %q%s", e.GrpcStatus, didYouMean(e.GrpcStatus, grpcStatuses()))
			}
		case *networking.HTTPFaultInjection_Abort_Http2Error:
			c.errorf(at+".abort.http2Error", "is not supported: give httpStatus or grpcStatus")
		default:
			c.warnf(at+".abort", "there is no status: nothing is aborted; give httpStatus or grpcStatus")
		}
	}
	c.delay(at+".delay", f.Delay)
}

func (c *checker) delay(at string, d *networking.HTTPFaultInjection_Delay) {
	if d == nil {
		return
	}
	c.faultPercentage(at+".percentage", d.Percentage)
	if d.Percent != 0 { //nolint:staticcheck // deprecated by Istio, still accepted
		c.percent(at+".percent", float64(d.Percent)) //nolint:staticcheck // as above
		c.warnf(at+".percent", "is deprecated: write percentage.value")
	}
	switch t := d.HttpDelayType.(type) {
	case *networking.HTTPFaultInjection_Delay_FixedDelay:
		c.duration(at+".fixedDelay", t.FixedDelay)
	case *networking.HTTPFaultInjection_Delay_ExponentialDelay:
		c.errorf(at+".exponentialDelay", "is not supported: give fixedDelay")
	default:
		c.warnf(at, "there is no fixedDelay: nothing is delayed; give one")
	}
}

func grpcStatuses() []string {
	return []string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
		"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
	}
}

// faultPercentage: Envoy counts in millionths.
func (c *checker) faultPercentage(at string, p *networking.Percent) {
	if v := p.GetValue(); v < 0 || v > 100 || v > 0 && v < 0.0001 {
		c.errorf(at+".value", "%v is not a percentage: it must be 0, or from 0.0001 to 100", v)
	}
}

func (c *checker) status(at string, status int32) {
	if status < 200 || status > 599 {
		c.errorf(at, "status %d is out of range: it must be from 200 to 599", status)
	}
}

func (c *checker) mirrors(at string, route *networking.HTTPRoute) {
	if p := route.MirrorPercent; p != nil { //nolint:staticcheck // deprecated by Istio, still accepted
		c.percent(at+".mirrorPercent", float64(p.Value))
		c.warnf(at+".mirrorPercent", "is deprecated: write mirrorPercentage")
	}
	if p := route.MirrorPercentage; p != nil {
		c.percent(at+".mirrorPercentage.value", p.Value)
	}
	c.destination(at+".mirror", route.Mirror)
	for i, m := range route.Mirrors {
		place := index(at+".mirrors", i)
		if m.Destination == nil {
			c.errorf(place, "a destination is missing")
		}
		c.destination(place+".destination", m.Destination)
		c.percent(place+".percentage.value", m.Percentage.GetValue())
	}
}

func (c *checker) redirect(at string, route *networking.HTTPRoute) {
	r := route.Redirect
	if r == nil {
		return
	}
	if r.Uri == "" && r.PrefixRewrite == "" && r.Authority == "" && r.Scheme == "" && r.RedirectPort == nil {
		c.errorf(at, "the redirect changes nothing: give uri, authority, scheme or port")
	}
	if r.Uri != "" && r.PrefixRewrite != "" {
		c.errorf(at, "only one of uri and prefixRewrite can be given")
	}
	for i, m := range route.Match {
		if _, prefix := m.Uri.GetMatchType().(*networking.StringMatch_Prefix); r.PrefixRewrite != "" && m.Uri != nil && !prefix {
			c.errorf(index(strings.TrimSuffix(at, ".redirect")+".match", i)+".uri", "redirect.prefixRewrite needs a prefix here")
		}
	}
	if r.RedirectCode != 0 && (r.RedirectCode < 300 || r.RedirectCode > 399) {
		c.errorf(at+".redirectCode", "%d is not a redirect: it must be 3xx", r.RedirectCode)
	}
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		c.errorf(at+".scheme", "unknown scheme %q: it is http or https", shorten(r.Scheme))
	}
	if p, ok := r.RedirectPort.(*networking.HTTPRedirect_Port); ok && p.Port != 0 {
		c.port(at+".port", p.Port)
	}
}

func (c *checker) directResponse(at string, d *networking.HTTPDirectResponse) {
	if d == nil {
		return
	}
	if d.Status < 200 || d.Status > 599 {
		c.errorf(at+".status", "status %d is out of range: it must be from 200 to 599", d.Status)
	}
	switch size := max(len(d.Body.GetString_()), len(d.Body.GetBytes())); {
	case size > 1<<20:
		c.errorf(at+".body", "the body is larger than 1 MiB: serve it from a workload")
	case size > 100<<10:
		c.warnf(at+".body", "the body is larger than 100 KiB, and every proxy gets it with each change of its routes: serve it from a workload")
	}
}

func (c *checker) retries(at string, r *networking.HTTPRetry) {
	if r == nil {
		return
	}
	if r.Attempts < 0 {
		c.errorf(at+".attempts", "%d is negative: 0 switches retries off", r.Attempts)
	}
	if r.Attempts == 0 && (r.PerTryTimeout != nil || r.RetryOn != "" || r.RetryRemoteLocalities != nil) {
		c.errorf(at, "attempts is 0, which switches retries off: give attempts, or remove the other fields")
	}
	c.duration(at+".perTryTimeout", r.PerTryTimeout)
	c.duration(at+".backoff", r.Backoff)
	if r.RetryOn == "" {
		return
	}
	for on := range strings.SplitSeq(r.RetryOn, ",") {
		status, _ := strconv.Atoi(on)
		if http.StatusText(status) == "" && !slices.Contains(retryConditions(), on) {
			c.errorf(at+".retryOn", "unknown condition %q%s", shorten(on), didYouMean(on, retryConditions()))
		}
	}
}

// retryConditions are those of Envoy's x-envoy-retry-on and x-envoy-retry-grpc-on
// that Istio accepts.
func retryConditions() []string {
	return []string{
		"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx", "refused-stream",
		"retriable-status-codes", "retriable-headers", "envoy-ratelimited", "http3-post-connect-failure",
		"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
	}
}

func (c *checker) rewrite(at string, r *networking.HTTPRewrite) {
	if r == nil {
		return
	}
	re := r.UriRegexRewrite
	switch {
	case r.Uri != "" && re != nil:
		c.errorf(at, "only one of uri and uriRegexRewrite can be given")
	case r.Uri == "" && re == nil && r.Authority == "":
		c.errorf(at, "the rewrite changes nothing: give uri, uriRegexRewrite or authority")
	case re != nil && (re.Match == "" || re.Rewrite == ""):
		c.errorf(at+".uriRegexRewrite", "needs both match and rewrite")
	case re != nil:
		c.regex(at+".uriRegexRewrite.match", re.Match)
	}
}

func (c *checker) httpDestinations(at string, routes []*networking.HTTPRouteDestination) {
	weights := make([]int32, 0, len(routes))
	for i, d := range routes {
		place := index(at+".route", i)
		c.routedTo(place, d.Destination)
		c.headerChanges(place+".headers", d.Headers)
		weights = append(weights, d.Weight)
	}
	c.weights(at, weights)
}

func (c *checker) l4Destinations(at string, routes []*networking.RouteDestination) {
	if len(routes) == 0 {
		c.errorf(at, "a route is missing")
	}
	weights := make([]int32, 0, len(routes))
	for i, d := range routes {
		place := index(at+".route", i)
		c.routedTo(place, d.Destination)
		weights = append(weights, d.Weight)
	}
	c.weights(at, weights)
}

func (c *checker) routedTo(at string, d *networking.Destination) {
	if d == nil {
		c.errorf(at, "a destination is missing")
	}
	c.destination(at+".destination", d)
}

// weights need not make 100: they are taken in proportion, as Istio does.
func (c *checker) weights(at string, weights []int32) {
	var total int64
	for i, w := range weights {
		if w < 0 {
			c.errorf(index(at+".route", i)+".weight", "weight %d is negative", w)
		}
		total += int64(w)
	}
	if len(weights) > 1 && total == 0 {
		c.errorf(at+".route", "the weights of several destinations add up to 0: give each a weight")
	}
}

func (c *checker) destination(at string, d *networking.Destination) {
	if d == nil {
		return
	}
	if d.Host == "*" {
		c.errorf(at+".host", "* is not a destination: name a service")
	} else if !isIP(d.Host) {
		c.host(at+".host", d.Host)
	}
	if d.Subset != "" && !isAnyLabel(d.Subset) {
		c.errorf(at+".subset", "%q is not the name of a subset", shorten(d.Subset))
	}
	if d.Port != nil {
		c.port(at+".port.number", d.Port.Number)
	}
}

func (c *checker) tlsRoute(at string, route *networking.TLSRoute, vs *networking.VirtualService) {
	if len(route.Match) == 0 {
		c.errorf(at, "a TLS route needs a match with sniHosts")
	}
	for i, match := range route.Match {
		place := index(at+".match", i)
		if len(match.SniHosts) == 0 {
			c.errorf(place, "a TLS match needs sniHosts")
		}
		for j, host := range match.SniHosts {
			c.sniHost(index(place+".sniHosts", j), host, vs.Hosts)
		}
		c.l4Match(place, match.DestinationSubnets, match.Port, match.SourceLabels, match.Gateways)
	}
	c.l4Destinations(at, route.Route)
}

// crossClusterForm is the SNI of calls between clusters: outbound_.PORT_.SUBSET_.HOST.
var crossClusterForm = regexp.MustCompile(`^outbound_\.[0-9]+_\.[^_]*_\.[-a-zA-Z0-9.]+$`)

func (c *checker) sniHost(at, host string, hosts []string) {
	if isIP(host) {
		c.warnf(at, "clients send no SNI for an IP address: this will hardly match")
		return
	}
	if !crossClusterForm.MatchString(host) && !c.host(at, host) {
		return
	}
	if !slices.ContainsFunc(hosts, func(h string) bool { return model.HostMatches(h, host) }) {
		c.errorf(at, "%q is not within hosts (%s)", host, strings.Join(hosts, ", "))
	}
}
