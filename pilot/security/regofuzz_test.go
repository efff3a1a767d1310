package security

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"unicode/utf8"
)

// What random Rego policies and requests are made of: few values, so that they meet.
var (
	regoStrings = []string{"GET", "POST", "/a", "/a/b", "/admin", "a", "b", "one", "two", "onetwo", "ONE", "", "/a?x=1", "b.set.test", "Basic abc", "one,two", "a b", "é", "x!"}
	regoPaths   = []string{
		"/", "/a", "/a/b", "/a/b/", "//a", "/a//b", "/admin", "/admin/x", "/a?x=1", "/a/b?x=%41", "/%61", "/%61/b", "/a%2fb", "/a%2Fb/c", "/%2fa", "/a;x", "/a?b;c", "/a%zz", "/a?%", "/a%",
		"/a/b/c", "/a/%62", "/A", "/a%20b", "/a?access_token=x", "/one/two", "/\xc3\xa9", "/a\xc3\xa9/b", "/a/b?\xc3\xa9", "/a%3Fb", "/a%25", "/onetwo", "/a.b/c",
	}
	regoHeaderNames  = []string{"x-a", "x-b", "authorization"}
	regoHeaderValues = []string{"one", "two", "onetwo", "ONE", "", "Basic abc", "a", "b", "one,two", "a b", "\xc3\xa9", "on\xff", "\xff", "x!", "a/b", "\xe2\x84\xaafoo", "kfoo"}
	regoPrincipals   = []string{"spiffe://cluster.local/ns/a/sa/x", "spiffe://cluster.local/ns/b/sa/x", "spiffe://cluster.local/ns/a/sa/y", "spiffe://cluster.local/ns/default/sa/web"}
	regoRegexes      = []string{`^/a`, `^/a/[^/]+$`, `b$`, `^(GET|HEAD)$`, `^/a/.*`, `[0-9]+`, `(?i)ONE`, `^one|two$`, `\bone\b`, `.`, `^$`, `^[a-z]+$`, `o{1,2}n`, `^\S+$`, `(?i)k`}
	regoGlobs        = []string{`["/a/*", ["/"]`, `["/a/**", ["/"]`, `["*b", []`, `["one*", null`, `["/*/b", ["/"]`, `["**", []`}
	regoMethods      = []string{"GET", "POST", "DELETE", "get"}
)

const regoOwn = "spiffe://cluster.local/ns/default/sa/httpbin"

// regoGenerator makes random policies and requests.
type regoGenerator struct {
	*rand.Rand
}

func (g regoGenerator) pick(from []string) string { return from[g.IntN(len(from))] }

func (g regoGenerator) text() string { return fmt.Sprintf("%q", g.pick(regoStrings)) }

// field is a string of the input document, with texts that it may be.
func (g regoGenerator) field() (ref string, texts []string) {
	const http = "input.attributes.request.http."
	switch g.IntN(12) {
	case 0:
		return http + "method", regoMethods
	case 1, 2:
		return http + "path", regoPaths[:14]
	case 3:
		return http + "host", []string{"a.set.test", "b.set.test", "a.set.test:8080"}
	case 4, 5, 6:
		return http + `headers["` + g.pick(regoHeaderNames) + `"]`, regoHeaderValues
	case 7:
		return "input.attributes.source.principal", regoPrincipals
	case 8:
		return "input.source_principal", regoPrincipals
	case 9:
		return "input.attributes.destination.principal", []string{regoOwn, "spiffe://x/y"}
	case 10:
		return fmt.Sprintf("input.parsed_path[%d]", g.IntN(3)), []string{"a", "b", "admin", "", "a b", "a?b", "é"}
	}
	return "input.jwt.claims." + g.pick([]string{"sub", "email", "a.b"}), []string{"alice", "bob", "alice@x", "", "é"}
}

func (g regoGenerator) list(texts []string) string {
	var out []string
	for range g.IntN(4) {
		out = append(out, fmt.Sprintf("%q", g.pick(texts)))
	}
	if g.IntN(2) == 0 || len(out) == 0 {
		return "[" + strings.Join(out, ", ") + "]"
	}
	return "{" + strings.Join(out, ", ") + "}"
}

// expression is one condition; expressions may come with definitions of variables
// in front.
func (g regoGenerator) expression() string {
	ref, texts := g.field()
	is := func() string { return fmt.Sprintf("%q", g.pick(texts)) }
	v := fmt.Sprintf("v%d", g.IntN(1000000))
	switch g.IntN(27) {
	case 0, 1, 2:
		return ref + " == " + is()
	case 3:
		return ref + " != " + is()
	case 4:
		return "startswith(" + ref + ", " + is() + ")"
	case 5:
		return "endswith(" + ref + ", " + g.pick([]string{is(), `"/sa/x"`, `"/x"`, `"b"`}) + ")"
	case 6:
		return "contains(" + ref + ", " + g.pick([]string{is(), `"/ns/a/"`, `"n"`, `"://"`}) + ")"
	case 7:
		return ref + " in " + g.list(texts)
	case 8:
		return ref
	case 9:
		return "lower(" + ref + ") == " + g.pick([]string{is(), `"one"`, `"kfoo"`, `"a.set.test"`})
	case 10:
		return v + " := lower(" + ref + "); startswith(" + v + ", " + g.pick([]string{is(), `"one"`, `"k"`}) + ")"
	case 11:
		return v + ` := split(` + ref + `, "` + g.pick([]string{"/", "/", "?", " ", ","}) + `"); ` + v + fmt.Sprintf("[%d]", g.IntN(5)) + " == " + g.pick([]string{is(), `"ns"`, `"a"`, `"cluster.local"`, `""`, `"one"`})
	case 12:
		return "regex.match(`" + g.pick(regoRegexes) + "`, " + ref + ")"
	case 13:
		return "glob.match(" + g.pick(regoGlobs)[1:] + ", " + ref + ")"
	case 14:
		return "input.parsed_path = [" + g.pick([]string{`"a"`, "_"}) + ", " + g.pick([]string{`"b"`, "_"}) + "]"
	case 15:
		return fmt.Sprintf("count(input.parsed_path) == %d", g.IntN(4))
	case 16:
		return g.pick([]string{`"g1"`, `"g2"`, `"alice"`}) + " in input.jwt.claims." + g.pick([]string{"groups", "sub", "scope"})
	case 17:
		return "some " + v + " in input.jwt.claims.groups; " + v + " == " + g.pick([]string{`"g1"`, `"g3"`})
	case 18:
		return g.pick([]string{"input.jwt.verified", "input.jwt.verified == true", "input.jwt.claims.admin == true", "input.jwt.claims.admin == false", `input.jwt.issuer == "` + testIssuer + `"`, "input.jwt"})
	case 19:
		return `net.cidr_contains("` + g.pick([]string{"127.0.0.0/24", "127.0.0.2/32", "10.0.0.0/8"}) + `", input.attributes.source.address.socketAddress.address)`
	case 20:
		return g.pick([]string{
			`input.attributes.source.address.socketAddress.address == "127.0.0.2"`, `input.attributes.destination.address.socketAddress.address == "127.0.0.1"`,
			"input.attributes.destination.address.socketAddress.portValue == 8000", "input.attributes.destination.address.socketAddress.portValue != 8000",
			`lower(input.attributes.tlsSession.sni) == "httpbin.default"`, `input.attributes.tlsSession.sni == "httpbin.default"`,
		})
	case 21:
		return g.pick([]string{`roles[input.jwt.claims.sub][_] == "admin"`, `input.attributes.request.http.method in allowed[_]`, `allowed[input.attributes.request.http.headers["x-a"]]`})
	case 22:
		return g.pick([]string{"time.now_ns() > 0", `input.parsed_query.x[0] == "1"`, "every g in input.jwt.claims.groups { g != \"g2\" }", `to_number(input.attributes.request.http.headers["x-b"]) > 1`})
	case 23:
		return "is_" + g.pick([]string{"p", "q"})
	case 24:
		return `has("` + g.pick(regoStrings[:8]) + `")`
	case 25:
		return "count(deny) == 0"
	}
	return ref + " == " + g.text()
}

// body is a conjunction, now and then with a negation.
func (g regoGenerator) body(helpers bool) string {
	var out []string
	for range 1 + g.IntN(3) {
		e := g.expression()
		for !helpers && (strings.Contains(e, "is_") || strings.Contains(e, "has(") || strings.Contains(e, "deny")) {
			e = g.expression()
		}
		if g.IntN(4) == 0 && !strings.Contains(e, ";") && !strings.Contains(e, ":=") && !strings.Contains(e, "_]") && !strings.HasPrefix(e, "every") {
			e = "not " + e
		}
		out = append(out, e)
	}
	return strings.Join(out, "; ")
}

// module is a policy whose query is data.p.allow.
func (g regoGenerator) module() string {
	var b strings.Builder
	b.WriteString("package p\n")
	value, other := "true", "false"
	switch g.IntN(8) {
	case 0:
		value, other = "false", "true"
	case 1:
		value, other = `{"allowed": true}`, `{"allowed": false, "http_status": 403}`
	case 2:
		other = ""
	case 3:
		value, other = `{"allowed": true, "headers": {"x": "y"}}`, `{"allowed": false}`
	}
	if other != "" {
		fmt.Fprintf(&b, "default allow := %s\n", other)
	}
	for range 1 + g.IntN(3) {
		fmt.Fprintf(&b, "allow := %s if { %s }\n", value, g.body(true))
	}
	if g.IntN(12) == 0 {
		fmt.Fprintf(&b, "allow := %s if { %s }\n", g.pick([]string{"false", "true"}), g.body(true))
	}
	for _, name := range []string{"is_p", "is_q"} {
		for range 1 + g.IntN(2) {
			fmt.Fprintf(&b, "%s if { %s }\n", name, g.body(false))
		}
	}
	fmt.Fprintf(&b, "deny contains \"a\" if { %s }\n", g.body(false))
	fmt.Fprintf(&b, "deny contains msg if { %s; msg := sprintf(\"%%s\", [input.attributes.request.http.method]) }\n", g.body(false))
	ref, _ := g.field()
	fmt.Fprintf(&b, "has(x) if %s == x\n", ref)
	b.WriteString("roles := {\"alice\": [\"admin\", \"user\"], \"bob\": [\"user\"]}\nallowed := {\"one\": [\"GET\"], \"two\": [\"POST\", \"DELETE\"]}\n")
	return b.String()
}

// regoRequest is one request, as Envoy sees it.
type regoRequest struct {
	method, path, host string
	// headers are by name; several of one name are joined only when looked at.
	headers   map[string][]string
	principal string
	source    string
	// claims are those of a token that jwt_authn has verified; nil for none.
	claims map[string]any
}

func (g regoGenerator) request() regoRequest {
	r := regoRequest{
		method: g.pick(regoMethods), path: g.pick(regoPaths), host: g.pick([]string{"a.set.test", "b.set.test", "A.set.test", "a.set.test:8080"}),
		headers: map[string][]string{}, source: g.pick([]string{"127.0.0.1", "127.0.0.2", "127.0.1.3"}),
	}
	if g.IntN(4) > 0 {
		r.principal = g.pick(regoPrincipals)
	}
	for _, name := range regoHeaderNames {
		if name == "authorization" && g.IntN(3) > 0 {
			continue
		}
		for range g.IntN(3) {
			r.headers[name] = append(r.headers[name], g.pick(regoHeaderValues))
		}
	}
	if g.IntN(2) == 0 {
		r.claims = g.claims()
		delete(r.headers, "authorization")
	}
	return r
}

func (g regoGenerator) claims() map[string]any {
	out := map[string]any{"iss": testIssuer, "sub": g.pick([]string{"alice", "bob"})}
	some := func(name string, values ...any) {
		if v := values[g.IntN(len(values))]; v != "absent" {
			out[name] = v
		}
	}
	some("email", "absent", "alice@x", "é", "", nil, 5.0)
	some("admin", "absent", true, false, "true", nil)
	some("groups", "absent", []any{"g1", "g2"}, []any{"g3"}, []any{}, "g1", map[string]any{"k": "g1"}, []any{1.0}, []any{1.0, "g1"}, nil)
	some("scope", "absent", []any{"g1"})
	some("a", "absent", map[string]any{"b": "bob"}, "x", map[string]any{"b": []any{"bob"}})
	return out
}

// sendable says that net/http sends the request as it is.
func (r regoRequest) sendable() bool {
	for _, values := range r.headers {
		if slices.ContainsFunc(values, func(s string) bool { return !utf8.ValidString(s) }) {
			return false
		}
	}
	// Envoy itself answers 400 to a path beyond ASCII and to a method that it does not know.
	return r.method != "get" && !strings.HasPrefix(r.path, "//") && strings.IndexFunc(r.path, func(c rune) bool { return c >= utf8.RuneSelf }) < 0
}
