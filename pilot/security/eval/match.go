package eval

import (
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/writ-mesh/writ/pilot/condition"
)

// value says whether one value of a clause is what the request has.
func (c *Clause) value(r *Request, value string) bool {
	switch c.Key {
	case HostKey:
		return match(strings.ToLower(value), strings.ToLower(r.Host))
	case AnyFormHostKey:
		return anyFormHost(strings.ToLower(value), strings.ToLower(r.Host))
	case MethodKey:
		return match(value, r.Method)
	case PathKey:
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
		return c.principal(value, r.Principal)
	case condition.Namespace:
		ns, _, ok := c.account(r.Principal)
		return ok && glob(value, ns)
	case condition.ServiceAccount:
		wantNS, wantSA := c.Account(value)
		ns, sa, ok := c.account(r.Principal)
		return ok && ns == wantNS && sa == wantSA
	case condition.TrustDomain:
		return c.trustDomain(value, r.Principal)
	}
	return request(r, c.Key, value)
}

// request are the keys that a token, a header or another filter answers.
func request(r *Request, key, value string) bool {
	switch key {
	case condition.TokenPrincipal:
		return requestPrincipal(value, text(r.Claims["iss"]), text(r.Claims["sub"]))
	case condition.Audiences:
		return claim(r.Claims["aud"], value)
	case condition.Presenter:
		return claim(r.Claims["azp"], value)
	}
	k, name, _ := condition.Find(key)
	switch k.Name {
	case condition.Headers:
		return slices.ContainsFunc(r.Header(name), func(got string) bool { return value == "*" || match(value, got) })
	case condition.Claims:
		return claim(Claim(r.Claims, name), value)
	case condition.EnvoyFilters:
		filter, field, _ := strings.Cut(name, "[")
		return metadata(r.Metadata["envoy.filters."+filter][field], value)
	}
	return false
}

// Header gives the lines of a header, each of which is compared by itself, nil if it is
// not there. The pseudo-headers of HTTP/2 are headers too, of which host is another
// name of :authority.
func (r *Request) Header(name string) []string {
	name = strings.ToLower(name)
	switch {
	case name == ":method":
		return []string{r.Method}
	case name == ":path":
		return []string{r.Path + r.Query}
	case name == ":authority" || name == "host":
		return []string{r.Host}
	case len(r.Lines[name]) > 0:
		return r.Lines[name]
	}
	if value, there := r.Headers[name]; there {
		return []string{value}
	}
	return nil
}

// ClaimNames splits "a][b", the name of a nested claim, into a and b. With brackets
// that do not close each other, or nothing between them, it is one odd name.
func ClaimNames(name string) []string {
	names := strings.Split(name, "][")
	for _, n := range names {
		if n == "" || strings.ContainsAny(n, "[]") {
			return []string{name}
		}
	}
	return names
}

// Claim gives a claim, nil if it is not there; a nested one is named "a][b".
func Claim(claims map[string]any, name string) any {
	var at any = claims
	for _, n := range ClaimNames(name) {
		object, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = object[n]
	}
	return at
}

// ClaimText is a claim as quotas tell requests apart by it: a text, a number or a boolean;
// empty for anything else.
func ClaimText(claim any) string {
	switch v := claim.(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < wholeNumbers {
			return strconv.FormatInt(int64(v), 10)
		}
		return strconv.FormatFloat(v, 'g', 6, 64)
	}
	return ""
}

// wholeNumbers is below which a number of JSON is exact.
const wholeNumbers = 1 << 53

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

// account takes namespace and service account out of the SPIFFE ID.
func (c *Clause) account(principal string) (namespace, serviceAccount string, ok bool) {
	parts := strings.Split(principal, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return "", "", false
	}
	if c.OwnNames() && !slices.Contains(c.domains.Own, parts[0]) {
		return "", "", false
	}
	return parts[2], parts[4], true
}

func (c *Clause) principal(value, principal string) bool {
	if principal == "" {
		return false
	}
	if match(value, principal) {
		return true
	}
	// A policy that names one trust domain of the mesh means all of them.
	td, rest, _ := strings.Cut(value, "/")
	own, ownRest, _ := strings.Cut(principal, "/")
	known := td == "cluster.local" || slices.ContainsFunc(c.domains.Own, func(have string) bool { return match(td, have) })
	return td != "*" && strings.Count(value, "/") == 4 && known && slices.Contains(c.domains.Own, own) && match(rest, ownRest)
}

func (c *Clause) trustDomain(value, principal string) bool {
	own, _, ok := strings.Cut(principal, "/")
	if !ok {
		return false
	}
	return match(value, own) || slices.Contains(c.domains.Own, value) && slices.Contains(c.domains.Own, own)
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
