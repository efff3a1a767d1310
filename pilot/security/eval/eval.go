// Package eval decides AuthorizationPolicies in Go, straight from Istio's
// documentation and without Envoy. It is pure.
//
// Only tests use it so far: it is the second opinion that the differential test
// of package security compares Envoy's decisions with. An explanation of a
// decision would begin here.
//
// It covers DENY, ALLOW and AUDIT; what a CUSTOM provider says it cannot know.
package eval

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/condition"
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
	// Metadata is what Envoy's filters left, by filter and key.
	Metadata map[string]map[string]any
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

// Domains are the trust domains of a mesh.
type Domains struct {
	// Own is the mesh's and its aliases.
	Own []string
	// Federated are others whose identities are accepted.
	Federated []string
}

// Authorize decides by the policies that apply to a workload. There is no decision,
// and an error, if it hangs on a condition whose key is not known.
func Authorize(d Domains, policies []*model.AuthorizationPolicy, r Request) (Decision, error) {
	e := &evaluator{trustDomains: d.Own, federated: len(d.Federated) > 0, r: r}
	var out Decision
	_, _, out.Audited = e.first(policies, security.AuthorizationPolicy_AUDIT)
	if pol, rule, ok := e.first(policies, security.AuthorizationPolicy_DENY); ok {
		out.Policy, out.Rule = pol, rule
	} else if slices.ContainsFunc(policies, func(p *model.AuthorizationPolicy) bool { return enforced(p, security.AuthorizationPolicy_ALLOW) }) {
		out.Policy, out.Rule, out.Allowed = e.first(policies, security.AuthorizationPolicy_ALLOW)
	} else {
		out.Allowed = true
	}
	if e.err != nil {
		return Decision{}, e.err
	}
	return out, nil
}

func enforced(p *model.AuthorizationPolicy, action security.AuthorizationPolicy_Action) bool {
	return p.Spec.GetAction() == action && !model.DryRun(p)
}

type evaluator struct {
	trustDomains []string
	// federated: namespaces and accounts of other trust domains may call.
	federated bool
	// refuses: the rule that is looked at refuses.
	refuses bool
	r       Request
	err     error // the first key that is not known
}

// first finds a rule that matches.
func (e *evaluator) first(policies []*model.AuthorizationPolicy, action security.AuthorizationPolicy_Action) (*model.AuthorizationPolicy, int, bool) {
	for _, pol := range policies {
		if !enforced(pol, action) {
			continue
		}
		e.refuses = action == security.AuthorizationPolicy_DENY
		for i, rule := range pol.Spec.GetRules() {
			before := e.err
			if e.rule(pol.Namespace, rule, action) {
				return pol, i, true
			}
			if before == nil && e.err != nil {
				e.err = fmt.Errorf("%s: rules[%d]: %w", pol.Ref, i, e.err)
			}
		}
	}
	return nil, 0, false
}

// rule: one of the sources, one of the operations, and all conditions.
func (e *evaluator) rule(namespace string, rule *security.Rule, action security.AuthorizationPolicy_Action) bool {
	for _, w := range rule.GetWhen() {
		if _, _, ok := condition.Find(w.GetKey()); !ok {
			e.unknown(w.GetKey())
			return false
		}
	}
	if e.r.TCP && action == security.AuthorizationPolicy_ALLOW && needsHTTP(rule) {
		return false
	}
	from := len(rule.GetFrom()) == 0
	for _, f := range rule.GetFrom() {
		from = from || e.source(namespace, f.GetSource())
	}
	to := len(rule.GetTo()) == 0
	for _, t := range rule.GetTo() {
		to = to || e.operation(t.GetOperation(), action)
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
	return slices.ContainsFunc(rule.GetWhen(), func(w *security.Condition) bool { return httpOnly(w.GetKey()) })
}

// Keys for the fields of an operation that no condition has.
const (
	hostKey = "hosts"
	// anyFormHostKey is a host with any port, and as an absolute name: DENY means
	// the server, however the caller writes it.
	anyFormHostKey = "hosts in any form"
	methodKey      = "methods"
	pathKey        = "paths"
)

func httpOnly(key string) bool {
	k, _, _ := condition.Find(key)
	return k.HTTPOnly || key == hostKey || key == anyFormHostKey || key == methodKey || key == pathKey
}

func (e *evaluator) source(namespace string, s *security.Source) bool {
	return e.both(namespace, condition.Principal, s.GetPrincipals(), s.GetNotPrincipals()) &&
		e.both(namespace, condition.TokenPrincipal, s.GetRequestPrincipals(), s.GetNotRequestPrincipals()) &&
		e.both(namespace, condition.ServiceAccount, s.GetServiceAccounts(), s.GetNotServiceAccounts()) &&
		e.both(namespace, condition.TrustDomain, s.GetTrustDomains(), s.GetNotTrustDomains()) &&
		e.both(namespace, condition.Namespace, s.GetNamespaces(), s.GetNotNamespaces()) &&
		e.both(namespace, condition.SourceIP, s.GetIpBlocks(), s.GetNotIpBlocks()) &&
		e.both(namespace, condition.RemoteIP, s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks())
}

func (e *evaluator) operation(o *security.Operation, action security.AuthorizationPolicy_Action) bool {
	hosts := hostKey
	if action == security.AuthorizationPolicy_DENY {
		hosts = anyFormHostKey
	}
	return e.both("", hosts, o.GetHosts(), nil) && e.both("", hostKey, nil, o.GetNotHosts()) &&
		e.both("", methodKey, o.GetMethods(), o.GetNotMethods()) &&
		e.both("", pathKey, o.GetPaths(), o.GetNotPaths()) &&
		e.both("", condition.Port, o.GetPorts(), o.GetNotPorts())
}

// both is one field: any of values unless there are none, and none of notValues.
func (e *evaluator) both(namespace, key string, values, notValues []string) bool {
	if e.r.TCP && httpOnly(key) {
		return true
	}
	matches := func(negated bool) func(string) bool {
		return func(v string) bool { return e.value(namespace, key, v, negated) }
	}
	return (len(values) == 0 || slices.ContainsFunc(values, matches(false))) && !slices.ContainsFunc(notValues, matches(true))
}

func (e *evaluator) value(namespace, key, value string, negated bool) bool {
	r := e.r
	switch key {
	case hostKey:
		return match(strings.ToLower(value), strings.ToLower(r.Host))
	case anyFormHostKey:
		return anyFormHost(strings.ToLower(value), strings.ToLower(r.Host))
	case methodKey:
		return match(value, r.Method)
	case pathKey:
		return path(value, r.Path)
	case condition.Port:
		return value == strconv.FormatUint(uint64(r.DestinationPort), 10)
	case condition.DestinationIP:
		return within(value, r.Destination)
	case condition.SourceIP:
		return within(value, r.Source)
	case condition.RemoteIP:
		return within(value, r.Remote)
	case condition.SNI:
		return match(value, r.SNI)
	case condition.Principal:
		return e.principal(value)
	case condition.Namespace:
		ns, _, ok := e.account(negated)
		return ok && glob(value, ns)
	case condition.ServiceAccount:
		wantNS, wantSA, both := strings.Cut(value, "/")
		if !both {
			wantNS, wantSA = namespace, value
		}
		ns, sa, ok := e.account(negated)
		return ok && ns == wantNS && sa == wantSA
	case condition.TrustDomain:
		return e.trustDomain(value)
	}
	return e.request(key, value)
}

// request are the keys that a token, a header or another filter answers.
func (e *evaluator) request(key, value string) bool {
	switch key {
	case condition.TokenPrincipal:
		return requestPrincipal(value, text(e.r.Claims["iss"]), text(e.r.Claims["sub"]))
	case condition.Audiences:
		return claim(e.r.Claims["aud"], value)
	case condition.Presenter:
		return claim(e.r.Claims["azp"], value)
	}
	k, name, ok := condition.Find(key)
	switch {
	case ok && k.Name == condition.Headers:
		got, there := e.r.Headers[strings.ToLower(name)]
		return there && (value == "*" || match(value, got))
	case ok && k.Name == condition.Claims:
		var at any = e.r.Claims
		for _, n := range strings.Split(name, "][") {
			object, ok := at.(map[string]any)
			if !ok {
				return false
			}
			at = object[n]
		}
		return claim(at, value)
	case ok && k.Name == condition.EnvoyFilters:
		filter, field, _ := strings.Cut(name, "[")
		return metadata(e.r.Metadata["envoy.filters."+filter][field], value)
	}
	e.unknown(key)
	return false
}

func (e *evaluator) unknown(key string) {
	if e.err == nil {
		e.err = fmt.Errorf("unknown key %q", key)
	}
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

// anyFormHost is match, also for the host with a dot, a port or both after it.
func anyFormHost(pattern, host string) bool {
	if match(pattern, host) {
		return true
	}
	for i := range host {
		if rest := host[i:]; rest == "." || rest[0] == ':' || strings.HasPrefix(rest, ".:") {
			if match(pattern, host[:i]) {
				return true
			}
		}
	}
	return false
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

// account takes namespace and service account out of the SPIFFE ID. Those of another
// trust domain let nobody in; they do keep out.
func (e *evaluator) account(negated bool) (namespace, serviceAccount string, ok bool) {
	parts := strings.Split(e.r.Principal, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return "", "", false
	}
	keepsOut := e.refuses != negated
	if e.federated && !keepsOut && !slices.Contains(e.trustDomains, parts[0]) {
		return "", "", false
	}
	return parts[2], parts[4], true
}

func (e *evaluator) principal(value string) bool {
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

func (e *evaluator) trustDomain(value string) bool {
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

// metadata: a value "[x]" means a list that has x, any other a text.
func metadata(v any, value string) bool {
	inner, list := strings.CutPrefix(value, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	if !list || !closed {
		s, ok := v.(string)
		return ok && match(value, s)
	}
	all, ok := v.([]any)
	return ok && slices.ContainsFunc(all, func(one any) bool { s, ok := one.(string); return ok && match(inner, s) })
}
