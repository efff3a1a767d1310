package rego

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/types/known/structpb"
)

// readsCases are policies with package x and the rule d, and what they read.
var readsCases = map[string]struct {
	policy string
	want   []string
	impure string
}{
	"nothing":  {policy: `d := true`},
	"one path": {policy: `d if input.attributes.request.http.method == "GET"`, want: []string{"input.attributes.request.http.method"}},
	"a header": {
		policy: `d if input.attributes.request.http.headers["x-role"] == "reader"`,
		want:   []string{`input.attributes.request.http.headers["x-role"]`},
	},
	"import": {
		policy: "import input.attributes.request.http as r\nd if r.host == \"a\"",
		want:   []string{"input.attributes.request.http.host"},
	},
	"a longer and a shorter path": {
		policy: `d if { input.attributes.source.principal; input.attributes.source }`,
		want:   []string{"input.attributes.source"},
	},
	"part of a list":     {policy: `d if input.parsed_path[0] == "a"`, want: []string{"input.parsed_path"}},
	"iteration":          {policy: `d if input.attributes.request.http.headers[_] == "a"`, want: []string{"input.attributes.request.http.headers"}},
	"a name from a rule": {policy: "name := \"x-role\"\nd if input.attributes.request.http.headers[name] == \"a\"", want: []string{"input.attributes.request.http.headers"}},
	"a name from the input": {
		policy: `d if input.attributes.request.http.headers[input.parsed_path[0]] == "a"`,
		want:   []string{"input.attributes.request.http.headers", "input.parsed_path"},
	},
	"the whole":              {policy: `d if count(input) > 3`, want: []string{"input"}},
	"a variable":             {policy: `d if { y := input; y.parsed_path[0] == "a" }`, want: []string{"input"}},
	"walk":                   {policy: `d if { walk(input.attributes.source, [_, v]); v == "a" }`, want: []string{"input.attributes.source"}},
	"not":                    {policy: `d if not input.jwt.claims.admin`, want: []string{"input.jwt.claims.admin"}},
	"every":                  {policy: `d if every p in input.parsed_path { p != input.jwt.issuer }`, want: []string{"input.jwt.issuer", "input.parsed_path"}},
	"comprehension":          {policy: `d if count([p | p := input.parsed_path[_]; p == input.attributes.source.principal]) > 0`, want: []string{"input.attributes.source.principal", "input.parsed_path"}},
	"default":                {policy: "default d := false\nd if input.source_principal == \"a\"", want: []string{"input.source_principal"}},
	"else":                   {policy: `d if { input.parsed_path[0] == "a" } else := true if { input.source_principal == "b" }`, want: []string{"input.parsed_path", "input.source_principal"}},
	"another rule":           {policy: "d if e\ne if f\nf if input.truncated_body", want: []string{"input.truncated_body"}},
	"a rule that is not met": {policy: "d if input.truncated_body\ne if input.parsed_body", want: []string{"input.truncated_body"}},
	"function": {
		policy: `f(x) if x == input.attributes.destination.principal
d if f(input.attributes.source.principal)`,
		want: []string{"input.attributes.destination.principal", "input.attributes.source.principal"},
	},
	"function with a default argument": {
		policy: `f("a") := input.parsed_path
f("b") := input.parsed_query
d if f("a")`,
		want: []string{"input.parsed_path", "input.parsed_query"},
	},
	"partial set":         {policy: "s contains input.jwt.claims.sub\nd if \"a\" in s", want: []string{"input.jwt.claims.sub"}},
	"partial object":      {policy: "o[input.jwt.claims.sub] := input.parsed_path[0]\nd if o.a == \"b\"", want: []string{"input.jwt.claims.sub", "input.parsed_path"}},
	"reference in a head": {policy: "o.a[input.jwt.claims.sub].b := 1\nd if o.a.b", want: []string{"input.jwt.claims.sub"}},
	"rule by variable":    {policy: "o.a if input.jwt.claims.a\no.b if input.jwt.claims.b\nd if { some k; o[k] }", want: []string{"input.jwt.claims.a", "input.jwt.claims.b"}},
	"all of a package":    {policy: "a.b if input.jwt.claims.a\nd if count(data.x.a) > 0", want: []string{"input.jwt.claims.a"}},
	"value with":          {policy: "e if input.parsed_path[0] == \"a\"\nd if e with input.parsed_path as [input.jwt.issuer]", want: []string{"input.jwt.issuer", "input.parsed_path"}},
	"with deep in the input": {
		policy: "e if input.jwt.claims.sub == \"a\"\nd if e with input.jwt.claims.sub as \"a\"",
		want:   []string{"input.jwt.claims"},
	},
	"with data":             {policy: "e if data.f.g\nd if e with data.f as input.jwt", want: []string{"input.jwt"}},
	"template":              {policy: `d if sprintf("%s", [input.jwt.issuer]) == "a"`, want: []string{"input.jwt.issuer"}},
	"odd names":             {policy: `d if input.jwt.claims["a b"]["c"] == input.jwt.claims["1"]`, want: []string{`input.jwt.claims["1"]`, `input.jwt.claims["a b"].c`}},
	"clock":                 {policy: `d if time.now_ns() > 5`, impure: "time.now_ns"},
	"random":                {policy: `d if rand.intn("a", 5) == 1`, impure: "rand.intn"},
	"random in a rule":      {policy: "d if e\ne if uuid.rfc4122(\"a\") == \"b\"", impure: "uuid.rfc4122"},
	"runtime":               {policy: `d if opa.runtime().env`, impure: "opa.runtime"},
	"network":               {policy: `d if http.send({"url": "http://a", "method": "get"}).status_code == 200`, impure: "http.send"},
	"certificate":           {policy: `d if crypto.x509.parse_and_verify_certificates(input.parsed_path[0])[0]`, impure: "crypto.x509.parse_and_verify_certificates", want: []string{"input.parsed_path"}},
	"a function that mocks": {policy: "f(x) := count(x)\nd if f([]) == 1 with f as net.lookup_ip_addr", impure: "net.lookup_ip_addr"},
	"random nobody calls":   {policy: "d if input.parsed_path\ne if rand.intn(\"a\", 5) == 1", want: []string{"input.parsed_path"}},
	"print":                 {policy: `d if { print(input.parsed_path); true }`},
}

func TestReads(t *testing.T) {
	for name, c := range readsCases {
		t.Run(name, func(t *testing.T) {
			p, err := Compile(context.Background(), Source{Modules: map[string]string{"x.rego": "package x\n" + c.policy}}, "data.x.d", Options{Network: true})
			if err != nil {
				t.Fatal(err)
			}
			got := p.Reads()
			if diff := cmp.Diff(c.want, got); diff != "" && (len(c.want) > 0 || len(got) > 0) {
				t.Errorf("reads (-want +got)\n%s", diff)
			}
			if p.Impure() != c.impure {
				t.Errorf("impure %q, want %q", p.Impure(), c.impure)
			}
			if _, ok := p.Key(input(t, request(), InputOptions{})); ok != (c.impure == "") {
				t.Errorf("has a key: %v", ok)
			}
		})
	}
}

// A query may be more than the name of a rule.
func TestReadsOfQueries(t *testing.T) {
	for query, want := range map[string][]string{
		`data.x.d with input.jwt as {"a": 1}`: {"input.parsed_path"},
		`x := input.source_principal == "a"`:  {"input.source_principal"},
		`data`:                                {"input.parsed_path"},
		`data[x].d`:                           {"input.parsed_path"},
		`input`:                               {"input"},
	} {
		p, err := Compile(context.Background(), Source{Modules: map[string]string{"x.rego": "package x\nd if input.parsed_path[0] == \"a\""}}, query, Options{})
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		if diff := cmp.Diff(want, p.Reads()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", query, diff)
		}
	}
}

// Each function of this version of OPA is in the list of pure ones or known to be
// none; each that OPA marks is none.
func TestPure(t *testing.T) {
	impure := []string{
		"crypto.x509.parse_and_verify_certificates", "crypto.x509.parse_and_verify_certificates_with_options", "http.send", "internal.test_case",
		"io.jwt.decode_verify", "io.jwt.encode_sign", "io.jwt.encode_sign_raw", "json.match_schema", "json.verify_schema", "net.lookup_ip_addr",
		"opa.runtime", "providers.aws.sign_req", "rand.intn", "time.now_ns", "uuid.rfc4122",
	}
	known := 0
	for _, b := range ast.DefaultBuiltins {
		switch {
		case pure[b.Name] && (b.IsNondeterministic() || slices.Contains(impure, b.Name)):
			t.Errorf("%s is in the list of pure functions, and is none", b.Name)
		case !pure[b.Name] && !slices.Contains(impure, b.Name):
			t.Errorf("%s: nobody has said whether it is pure", b.Name)
		}
		if pure[b.Name] {
			known++
		}
	}
	if known != len(pure) {
		t.Errorf("the list has %d functions, OPA %d of them", len(pure), known)
	}
}

// propertyPolicies read in many ways; each decides by rare as well as common values.
var propertyPolicies = []string{
	`d if { input.attributes.request.http.method == "GET"; input.parsed_path[0] == "a" }`,
	`d if input.attributes.request.http.headers[input.parsed_path[0]]`,
	`d if not input.jwt.claims.admin`,
	`d := object.get(input, ["attributes", "request", "http", "headers", "x-a"], "none") == "b"`,
	`d if input.jwt.claims.sub == input.parsed_query.a[0]`,
	`d := {"allowed": input.truncated_body == false, "headers": {"x": concat(",", input.parsed_path)}}`,
	"e if input.jwt.claims.sub == \"a\"\nd if e with input.jwt.claims.sub as input.parsed_path[0]",
	"h := input.attributes.request.http\nd if { h.method == \"GET\" } else := false if { h.headers[\"x-a\"] }",
	`d if { some k, v in input.attributes.source.labels; k == v }`,
	"s contains x if { some x in input.parsed_path }\nd if input.attributes.source.principal in s",
	`d if input.attributes.source.address.socketAddress.portValue > 3`,
	`d if input.attributes.source.address`,
	`d if input.attributes.metadataContext.filterMetadata.f.a == "b"`,
	`d if input.parsed_body.a == input.parsed_body.b`,
	`d := {"allowed": true, "reason": json.marshal(input.jwt)}`,
	`d if { not input.jwt; input.jwt_error }`,
	`d if input.version.encoding == "protojson"`,
	`d if count(input.attributes) > 1`,
	`d if { h := input.attributes.request.http.headers; h["x-a"] == "a" }`,
	`d if { input.attributes.request.http.host; input.attributes.request.http.path != input.source_principal }`,
	`d if { input.attributes.request.time.nanos > 3; input.attributes.request.http.method == "GET" }`,
	`d if { input.attributes.source.principal == input.attributes.destination.principal; not input.jwt_error }`,
	`d if { input.attributes.source.service; not input.attributes.tlsSession }`,
}

// alike are those of them that random requests do not tell apart.
var alike = []string{propertyPolicies[16], propertyPolicies[17], propertyPolicies[22]}

// randomRequest takes few values, so that two requests often agree in some.
func randomRequest(r *rand.Rand) (*authv3.CheckRequest, InputOptions) {
	word := func() string { return []string{"a", "b", "x-a", "GET", ""}[r.IntN(5)] }
	maybe := func() bool { return r.IntN(3) > 0 }
	req := request(func(a *authv3.AttributeContext) {
		h := a.Request.Http
		h.Method, h.Path = word(), "/"+word()+"/"+word()
		if maybe() {
			h.Path += "?a=" + word()
		}
		for range r.IntN(4) {
			h.Headers[word()] = word()
		}
		if maybe() {
			h.Headers["content-type"], h.Body = "application/json", fmt.Sprintf(`{"a": %q, "b": %q}`, word(), word())
		}
		a.Source.Principal, a.Destination.Principal = word(), word()
		a.Source.Labels = map[string]string{word(): word()}
		if maybe() {
			a.Source.Address = nil
		} else {
			a.Source.GetAddress().GetSocketAddress().GetPortSpecifier()
		}
		if maybe() {
			s, err := structpb.NewStruct(map[string]any{"a": word()})
			if err == nil {
				a.MetadataContext = metadata("f", s)
			}
		}
		if !maybe() {
			a.Request = nil
		}
	})
	var o InputOptions
	switch r.IntN(4) {
	case 0:
		o.Token = &Token{Issuer: word(), Claims: fmt.Appendf(nil, `{"sub": %q, "admin": %v, "n": %d}`, word(), maybe(), r.IntN(3))}
	case 1:
		s, err := structpb.NewStruct(map[string]any{"sub": word(), "admin": maybe(), "n": float64(r.IntN(3))})
		if err == nil {
			o.Token = &Token{Issuer: word(), Payload: s}
		}
	case 2:
		o.TokenError = word()
	}
	return req, o
}

// decided is a decision in a form that can be compared.
func decided(t testing.TB, p *Program, doc ast.Value) string {
	t.Helper()
	w := newWatch(0, 0)
	d, err := p.eval(context.Background(), doc, w)
	if err != nil && !errors.Is(err, ErrUndefined) {
		return err.Error()
	}
	b, jerr := json.Marshal([]any{d.Result(), err == nil})
	if jerr != nil {
		t.Fatal(jerr)
	}
	return string(b)
}

// The part of the document that a policy reads decides as the whole does, and
// requests with equal keys are decided alike.
func TestReadsDecide(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same cases each time
	for _, policy := range propertyPolicies {
		p := compile(t, "package x\n"+policy, "data.x.d")
		decisions, met, results := map[Key]string{}, 0, map[string]bool{}
		forms, keys := map[Key]string{}, map[string]Key{}
		for range 120 {
			req, o := randomRequest(r)
			in := input(t, req, o)
			k, ok := p.Key(in)
			if !ok {
				t.Fatalf("%s: no key", policy)
			}
			part, err := in.document(p.reads)
			if err != nil {
				t.Fatal(err)
			}
			form, ok := appendValue(nil, part)
			if same, met := forms[k]; met && same != string(form) {
				t.Fatalf("%s: two requests of which it reads different things have the same key", policy)
			}
			if other, met := keys[string(form)]; met && other != k {
				t.Errorf("%s: two requests of which it reads the same have different keys", policy)
			}
			forms[k], keys[string(form)] = string(form), k
			if !ok {
				t.Fatalf("%s: %v has no form", policy, part)
			}
			whole := decided(t, p, in.Document())
			if got := decided(t, p, part); got != whole {
				t.Fatalf("%s: the part that is read gives %s, the whole %s\npart %v\nwhole %v", policy, got, whole, part, in.Document())
			}
			if before, ok := decisions[k]; ok {
				met++
				if before != whole {
					t.Fatalf("%s: two requests with the same key were decided as %s and %s", policy, before, whole)
				}
			}
			decisions[k], results[whole] = whole, true
		}
		if len(results) < 2 && !slices.Contains(alike, policy) {
			t.Errorf("%s: decided all alike, %v", policy, results)
		}
		if met == 0 && p.Reads()[0] != "input" && p.Reads()[0] != "input.attributes" {
			t.Errorf("%s: no two requests had the same key", policy)
		}
	}
}

// FuzzReads takes any policy text: what it reads of a request decides it as the
// whole request does.
func FuzzReads(f *testing.F) {
	for i, policy := range propertyPolicies {
		f.Add(policy, uint64(i)) //nolint:gosec // small
	}
	for _, c := range readsCases {
		f.Add(c.policy, uint64(5))
	}
	f.Fuzz(func(t *testing.T, policy string, seed uint64) {
		p, err := Compile(context.Background(), Source{Modules: map[string]string{"x.rego": "package x\n" + policy}}, "data.x.d", Options{})
		if err != nil || p.Impure() != "" {
			return
		}
		req, o := randomRequest(rand.New(rand.NewPCG(seed, 7))) //nolint:gosec // repeatable
		in, err := NewInput(req, o)
		if err != nil {
			return
		}
		part, err := in.document(p.reads)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := decided(t, p, part), decided(t, p, in.Document()); got != want {
			t.Fatalf("the part gives %s, the whole %s", got, want)
		}
	})
}

// Different values have different forms, and so different keys.
func TestAppendValueIsInjective(t *testing.T) {
	seen := map[string]string{}
	for _, text := range []string{
		`null`, `true`, `false`, `"true"`, `1`, `"1"`, `""`, `"a"`, `"ab"`, `[]`, `{}`, `[[]]`, `[{}]`, `["a", "b"]`, `["ab"]`, `[["a"], "b"]`, `[["a", "b"]]`,
		`{"a": "b"}`, `{"a": ["b"]}`, `{"a": "b", "c": "d"}`, `{"a": {"b": "c"}}`, `["a", "b", "c", "d"]`, `"\u0000"`, `["", ""]`, `[""]`,
	} {
		v, err := wholeJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		b, ok := appendValue(nil, v)
		if !ok {
			t.Fatalf("%s has no form", text)
		}
		if other, ok := seen[string(b)]; ok {
			t.Errorf("%s and %s have the same form", text, other)
		}
		seen[string(b)] = text
	}
	if _, ok := appendValue(nil, ast.NewSet()); ok {
		t.Error("a set has a form")
	}
}

// TestDocumentedReads compiles the example of the documentation.
func TestDocumentedReads(t *testing.T) {
	page, err := os.ReadFile("../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## Decisions that are kept")
	blocks := strings.Split(section, "```")
	if !ok || len(blocks) < 4 {
		t.Fatal("the section has gone")
	}
	p := compile(t, strings.TrimPrefix(blocks[1], "rego"), "data.shop.allow")
	if diff := cmp.Diff(strings.Fields(blocks[3]), p.Reads()); diff != "" || p.Impure() != "" {
		t.Errorf("impure %q, reads (-page +code)\n%s", p.Impure(), diff)
	}
}
