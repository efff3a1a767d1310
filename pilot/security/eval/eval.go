// Package eval decides AuthorizationPolicies in Go, straight from Istio's
// documentation and without Envoy. It is the second opinion that the compiled
// configuration is tested against, and what an explanation of a decision is made
// of. It is pure.
//
// It covers DENY, ALLOW and AUDIT; what a CUSTOM provider says it cannot know.
package eval

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// Request is what a sidecar knows of a request or connection.
type Request struct {
	// TCP means that no request is seen: only Principal, the addresses, the port
	// and SNI count.
	TCP          bool
	Method, Host string
	// Path is without its query.
	Path string
	// Headers have names in lower case.
	Headers map[string]string
	// Principal is the caller's SPIFFE ID without scheme, "" for plain text.
	Principal string
	// Source is the peer of the connection, Remote the client as
	// X-Forwarded-For or the PROXY protocol tell it.
	Source, Remote, Destination netip.Addr
	DestinationPort             uint32
	SNI                         string
	// Claims is the payload of the verified token, nil without one.
	Claims map[string]any
}

// Decision is the outcome.
type Decision struct {
	Allowed bool
	// Policy and Rule are the rule that decided; Policy is nil if there was no
	// ALLOW policy to satisfy, or if no rule of those allows.
	Policy *model.AuthorizationPolicy
	Rule   int
	// Audited says whether an AUDIT policy matches.
	Audited bool
}

// Authorize decides by the policies that apply to a workload. trustDomains are
// the mesh's own and its aliases.
func Authorize(trustDomains []string, policies []*model.AuthorizationPolicy, r Request) Decision {
	e := evaluator{trustDomains, r}
	var out Decision
	_, _, out.Audited = e.first(policies, security.AuthorizationPolicy_AUDIT)
	if pol, rule, ok := e.first(policies, security.AuthorizationPolicy_DENY); ok {
		out.Policy, out.Rule = pol, rule
		return out
	}
	if !slices.ContainsFunc(policies, func(p *model.AuthorizationPolicy) bool { return enforced(p, security.AuthorizationPolicy_ALLOW) }) {
		out.Allowed = true
		return out
	}
	out.Policy, out.Rule, out.Allowed = e.first(policies, security.AuthorizationPolicy_ALLOW)
	return out
}

func enforced(p *model.AuthorizationPolicy, action security.AuthorizationPolicy_Action) bool {
	dry, err := strconv.ParseBool(p.Annotations["istio.io/dry-run"])
	return p.Spec.GetAction() == action && (err != nil || !dry)
}

type evaluator struct {
	trustDomains []string
	r            Request
}

// first finds a rule that matches.
func (e evaluator) first(policies []*model.AuthorizationPolicy, action security.AuthorizationPolicy_Action) (*model.AuthorizationPolicy, int, bool) {
	for _, pol := range policies {
		if !enforced(pol, action) {
			continue
		}
		for i, rule := range pol.Spec.GetRules() {
			if e.rule(pol.Namespace, rule, action) {
				return pol, i, true
			}
		}
	}
	return nil, 0, false
}

// rule: one of the sources, one of the operations, and all conditions.
func (e evaluator) rule(namespace string, rule *security.Rule, action security.AuthorizationPolicy_Action) bool {
	if e.r.TCP && action == security.AuthorizationPolicy_ALLOW && needsHTTP(rule) {
		return false
	}
	from := len(rule.GetFrom()) == 0
	for _, f := range rule.GetFrom() {
		from = from || e.source(namespace, f.GetSource())
	}
	to := len(rule.GetTo()) == 0
	for _, t := range rule.GetTo() {
		to = to || e.operation(t.GetOperation())
	}
	if !from || !to {
		return false
	}
	for _, w := range rule.GetWhen() {
		if !e.both(namespace, w.GetKey(), w.GetValues(), w.GetNotValues()) {
			return false
		}
	}
	return true
}

// needsHTTP says whether any part of the rule speaks of requests.
func needsHTTP(rule *security.Rule) bool {
	for _, f := range rule.GetFrom() {
		if len(f.GetSource().GetRequestPrincipals())+len(f.GetSource().GetNotRequestPrincipals()) > 0 {
			return true
		}
	}
	for _, t := range rule.GetTo() {
		o := t.GetOperation()
		if len(o.GetHosts())+len(o.GetNotHosts())+len(o.GetMethods())+len(o.GetNotMethods())+len(o.GetPaths())+len(o.GetNotPaths()) > 0 {
			return true
		}
	}
	return slices.ContainsFunc(rule.GetWhen(), func(w *security.Condition) bool { return strings.HasPrefix(w.GetKey(), "request.") })
}

func (e evaluator) source(namespace string, s *security.Source) bool {
	return e.both(namespace, "source.principal", s.GetPrincipals(), s.GetNotPrincipals()) &&
		e.both(namespace, "request.auth.principal", s.GetRequestPrincipals(), s.GetNotRequestPrincipals()) &&
		e.both(namespace, "source.serviceAccount", s.GetServiceAccounts(), s.GetNotServiceAccounts()) &&
		e.both(namespace, "source.trustDomain", s.GetTrustDomains(), s.GetNotTrustDomains()) &&
		e.both(namespace, "source.namespace", s.GetNamespaces(), s.GetNotNamespaces()) &&
		e.both(namespace, "source.ip", s.GetIpBlocks(), s.GetNotIpBlocks()) &&
		e.both(namespace, "remote.ip", s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks())
}

func (e evaluator) operation(o *security.Operation) bool {
	return e.both("", "request.host", o.GetHosts(), o.GetNotHosts()) &&
		e.both("", "request.method", o.GetMethods(), o.GetNotMethods()) &&
		e.both("", "request.path", o.GetPaths(), o.GetNotPaths()) &&
		e.both("", "destination.port", o.GetPorts(), o.GetNotPorts())
}

// both is one field: any of values unless there are none, and none of notValues.
func (e evaluator) both(namespace, key string, values, notValues []string) bool {
	if e.r.TCP && strings.HasPrefix(key, "request.") {
		return true
	}
	matches := func(v string) bool { return e.value(namespace, key, v) }
	return (len(values) == 0 || slices.ContainsFunc(values, matches)) && !slices.ContainsFunc(notValues, matches)
}

func (e evaluator) value(namespace, key, value string) bool {
	r := e.r
	switch key {
	case "request.host":
		return match(strings.ToLower(value), strings.ToLower(r.Host))
	case "request.method":
		return match(value, r.Method)
	case "request.path":
		return path(value, r.Path)
	case "destination.port":
		return value == strconv.FormatUint(uint64(r.DestinationPort), 10)
	case "destination.ip":
		return within(value, r.Destination)
	case "source.ip":
		return within(value, r.Source)
	case "remote.ip":
		return within(value, r.Remote)
	case "connection.sni":
		return match(value, r.SNI)
	case "source.principal":
		return e.principal(value)
	case "source.namespace":
		ns, _, ok := e.account()
		return ok && glob(value, ns)
	case "source.serviceAccount":
		wantNS, wantSA, both := strings.Cut(value, "/")
		if !both {
			wantNS, wantSA = namespace, value
		}
		ns, sa, ok := e.account()
		return ok && ns == wantNS && sa == wantSA
	case "source.trustDomain":
		return e.trustDomain(value)
	}
	return e.request(key, value)
}

// request are the keys that a token or a header answers.
func (e evaluator) request(key, value string) bool {
	switch key {
	case "request.auth.principal":
		return requestPrincipal(value, text(e.r.Claims["iss"]), text(e.r.Claims["sub"]))
	case "request.auth.audiences":
		return claim(e.r.Claims["aud"], value)
	case "request.auth.presenter":
		return claim(e.r.Claims["azp"], value)
	}
	if name, ok := bracketed(key, "request.headers["); ok {
		got, there := e.r.Headers[strings.ToLower(name)]
		return there && (value == "*" || match(value, got))
	}
	if names, ok := bracketed(key, "request.auth.claims["); ok {
		var at any = e.r.Claims
		for _, n := range strings.Split(names, "][") {
			object, ok := at.(map[string]any)
			if !ok {
				return false
			}
			at = object[n]
		}
		return claim(at, value)
	}
	return false
}

func bracketed(key, open string) (string, bool) {
	rest, ok := strings.CutPrefix(key, open)
	return strings.TrimSuffix(rest, "]"), ok && strings.HasSuffix(rest, "]")
}

// match knows the four forms; "*" wants something there.
func match(pattern, s string) bool {
	switch {
	case pattern == "*":
		return s != ""
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(s, pattern[1:])
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(s, pattern[:len(pattern)-1])
	}
	return pattern == s
}

// glob lets "*" stand for anything anywhere.
func glob(pattern, s string) bool {
	head, rest, more := strings.Cut(pattern, "*")
	if !more {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	for s = s[len(head):]; ; s = s[1:] {
		if glob(rest, s) {
			return true
		}
		if s == "" {
			return false
		}
	}
}

func path(pattern, p string) bool {
	if !strings.Contains(pattern, "{*}") && !strings.Contains(pattern, "{**}") {
		return match(pattern, p)
	}
	return segments(strings.Split(pattern, "/"), strings.Split(p, "/"))
}

// segments: {*} is one segment that is not empty, {**} one or more that may be:
// /a/{**} takes /a/ and /a/b/c, not /a.
func segments(pattern, p []string) bool {
	if len(pattern) == 0 {
		return len(p) == 0
	}
	if pattern[0] == "{**}" {
		for i := range len(p) {
			if segments(pattern[1:], p[i+1:]) {
				return true
			}
		}
		return false
	}
	return len(p) > 0 && (pattern[0] == p[0] || pattern[0] == "{*}" && p[0] != "") && segments(pattern[1:], p[1:])
}

func within(block string, a netip.Addr) bool {
	if one, err := netip.ParseAddr(block); err == nil {
		return one == a
	}
	p, err := netip.ParsePrefix(block)
	return err == nil && p.Contains(a)
}

// account takes namespace and service account out of the SPIFFE ID.
func (e evaluator) account() (namespace, serviceAccount string, ok bool) {
	parts := strings.Split(e.r.Principal, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return "", "", false
	}
	return parts[2], parts[4], true
}

func (e evaluator) principal(value string) bool {
	if e.r.Principal == "" {
		return false
	}
	if match(value, e.r.Principal) {
		return true
	}
	// A policy that names one trust domain of the mesh means all of them.
	td, rest, _ := strings.Cut(value, "/")
	own, ownRest, _ := strings.Cut(e.r.Principal, "/")
	known := td == "cluster.local" || slices.ContainsFunc(e.trustDomains, func(have string) bool { return match(td, have) })
	return td != "*" && strings.Count(value, "/") == 4 && known && slices.Contains(e.trustDomains, own) && match(rest, ownRest)
}

func (e evaluator) trustDomain(value string) bool {
	own, _, ok := strings.Cut(e.r.Principal, "/")
	if !ok {
		return false
	}
	return match(value, own) || slices.Contains(e.trustDomains, value) && slices.Contains(e.trustDomains, own)
}

func requestPrincipal(value, iss, sub string) bool {
	if iss == "" && sub == "" {
		return false
	}
	slash := strings.LastIndex(value, "/")
	switch {
	case value == "*":
		return iss != "" && sub != ""
	case slash < 0 && strings.HasPrefix(value, "*"):
		return iss != "" && match(value, sub)
	case slash < 0 && strings.HasSuffix(value, "*"):
		return match(value, iss) && sub != ""
	case slash < 0:
		return iss == value && sub == ""
	case strings.HasPrefix(value, "*"):
		return match(value[:slash], iss) && sub == value[slash+1:]
	}
	return iss == value[:slash] && match(value[slash+1:], sub)
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// claim is a string or a list of them.
func claim(v any, value string) bool {
	switch v := v.(type) {
	case string:
		return match(value, v)
	case []string:
		return slices.ContainsFunc(v, func(s string) bool { return match(value, s) })
	case []any:
		return slices.ContainsFunc(v, func(s any) bool { t, ok := s.(string); return ok && match(value, t) })
	}
	return false
}
