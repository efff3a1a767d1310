package rego

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/regoform"
)

// TestSplitStays: what keeps a policy, or a part of it, where Rego is evaluated,
// with the line at fault.
func TestSplitStays(t *testing.T) {
	const head = "package p\nimport input.attributes.request.http as http\ndefault allow := false\n"
	for name, c := range map[string]struct {
		module string
		line   int
		why    string
	}{
		"time":              {head + `allow if { http.method == "GET"; time.now_ns() > 5 }`, 4, "time.now_ns"},
		"body":              {head + `allow if input.parsed_body.x == "1"`, 4, "input.parsed_body.x"},
		"query":             {head + `allow if input.parsed_query.x[0] == "1"`, 4, "input.parsed_query"},
		"else":              {head + "allow if { http.method == \"GET\" } else := true if { http.method == \"PUT\" }", 4, "else"},
		"two values":        {head + "user := http.headers.a\nuser := http.headers.b\nallow if user == \"x\"", 5, "several values"},
		"a computed value":  {head + "allow := http.headers.a", 4, "computed"},
		"a status":          {"package p\ndefault allow := {\"allowed\": false, \"http_status\": 302}\nallow := {\"allowed\": true} if input.x", 2, "status"},
		"headers":           {"package p\nallow := {\"allowed\": true, \"headers\": {\"a\": \"b\"}} if input.x", 2, "headers"},
		"with":              {head + "allow if bad with input.x as 1\nbad if input.x == 1", 4, "with"},
		"a token decoded":   {head + `allow if io.jwt.decode(http.headers.authorization)[1].sub == "a"`, 4, "io.jwt.decode"},
		"an iterated value": {head + "role := r if some r in input.jwt.claims.roles\nallow if role == \"x\"", 4, "several values"},
		"every":             {head + `allow if every g in input.jwt.claims.groups { g != "x" }`, 4, "every"},
		"SNI as it is":      {head + `allow if input.attributes.tlsSession.sni == "a.b"`, 4, ""},
		"non-ASCII":         {head + `allow if http.headers.a == "é"`, 4, ""},
		"what stands for !": {head + `allow if http.headers.a == "a!"`, 4, ""},
		"a large range":     {head + "allow if count(numbers.range(1, 1000000000000)) == 1", 4, "numbers.range"},
		"a wide text":       {head + "allow if sprintf(\"%999999999d\", [1]) == http.path", 4, "sprintf"},
	} {
		p, _ := split("m.rego", c.module, "data.p.allow", splitTimeout)
		if p.Whole() || len(p.Remote) == 0 {
			t.Errorf("%s: decided without evaluation: %s", name, p.Surely)
			continue
		}
		if r := p.Remote[0]; r.Line != c.line || !strings.Contains(r.Why, c.why) {
			t.Errorf("%s: %+v, want line %d and %q", name, r, c.line, c.why)
		}
	}
}

// TestSplitWhole: what needs no evaluation, with what it comes to.
func TestSplitWhole(t *testing.T) {
	const head = "package p\nimport input.attributes.request.http as http\ndefault allow := false\n"
	for rule, want := range map[string]string{
		`allow if http.method == "GET"`:                                                                   `header[:method] == "GET"`,
		`allow if http.method in {"GET", "PUT"}`:                                                          `(header[:method] == "GET" or header[:method] == "PUT")`,
		`allow if startswith(http.headers["x-a"], "b")`:                                                   `header[x-a] begins with "b"`,
		`allow if http.headers["x-a"]`:                                                                    `header[x-a] is there`,
		`allow if http.headers["x-a"] != "b"`:                                                             `(header[x-a] is there and not header[x-a] == "b")`,
		`allow if not http.headers["x-a"]`:                                                                `not header[x-a] is there`,
		`allow if not startswith(http.headers["x-a"], "b")`:                                               `(not header[x-a] begins with "b" and header[x-a] is there)`,
		"allow if not bad\nbad if startswith(http.headers[\"x-a\"], \"b\")":                               `not header[x-a] begins with "b"`,
		`allow if http.headers["x-a"] == ""`:                                                              `header[x-a] == ""`,
		`allow if http.host == ""`:                                                                        `false`,
		`allow if endswith(input.source_principal, "/sa/web")`:                                            `principal matches "spiffe://\\C*/sa/web|spiffe://sa/web"`,
		`allow if input.source_principal == "cluster.local/ns/a/sa/b"`:                                    `false`,
		`allow if split(input.source_principal, "/")[4] == "a"`:                                           `(principal begins with "spiffe://" and principal matches "spiffe://(?:[^/]*/){2}a(?:/\\C*)?")`,
		`allow if input.attributes.destination.address.socketAddress.portValue == 80`:                     `destination.port == "80"`,
		`allow if net.cidr_contains("10.0.0.1/8", input.attributes.source.address.socketAddress.address)`: `source.ip in "10.0.0.0/8"`,
		"allow if roles[http.headers.a][_] == http.method\nroles := {\"x\": [\"GET\"]}":                   `(header[a] == "x" and header[:method] == "GET")`,
		"allow if count(deny) == 0\ndeny contains \"a\" if http.method == \"PUT\"":                        `not header[:method] == "PUT"`,
		"allow if regex.match(`^/a.*b$`, http.path)":                                                      "",
	} {
		p, _ := split("m.rego", head+rule, "data.p.allow", splitTimeout)
		if got := p.Surely.String(); !p.Whole() || want != "" && got != want {
			t.Errorf("%s: whole %v, %+v\n got %s\nwant %s", rule, p.Whole(), p.Remote, got, want)
		}
	}
}

// TestSplitOutcomes: which way round the rule of the query goes.
func TestSplitOutcomes(t *testing.T) {
	const when = ` if input.attributes.request.http.method == "GET"`
	for module, want := range map[string]string{
		"allow := true" + when:                         "header[:method] == \"GET\"",
		"default allow := true\nallow := false" + when: "not header[:method] == \"GET\"",
		"default allow := true\nallow := true" + when:  "true",
		"allow := false" + when:                        "false",
		"default allow := false":                       "false",
		"default allow := {\"allowed\": false, \"http_status\": 403}\nallow := {\"allowed\": true}" + when: "header[:method] == \"GET\"",
	} {
		p, _ := split("m.rego", "package p\n"+module, "data.p.allow", splitTimeout)
		if got := p.Surely.String(); !p.Whole() || got != want {
			t.Errorf("%s: whole %v, %s, want %s (%v)", module, p.Whole(), got, want, p.Remote)
		}
	}
}

// TestSplitBound: a policy of too many conditions stays, and the same one is
// looked at once only.
func TestSplitBound(t *testing.T) {
	var b strings.Builder
	b.WriteString("package p\nallow if input.attributes.request.http.path in {\"x\"")
	for i := range maxAtoms {
		b.WriteString(`, "/` + strings.Repeat("a", i%7) + string(rune('a'+i%26)) + strings.Repeat("b", i/100) + `"`)
	}
	b.WriteString("}")
	var s Splitter
	p := s.Split("m", b.String()+"\nallow if input.attributes.request.http.host in "+`{"`+strings.Repeat(`x", "`, 3)+`y"}`, "data.p.allow")
	if s.Split("m", b.String(), "data.p.other") == p {
		t.Error("another query has the same answer")
	}
	if again := s.Split("m", b.String()+"\nallow if input.attributes.request.http.host in "+`{"`+strings.Repeat(`x", "`, 3)+`y"}`, "data.p.allow"); again != p {
		t.Error("looked at twice")
	}
	if n := p.Surely.Atoms(); n > maxAtoms {
		t.Errorf("%d conditions", n)
	}
}

// TestSplitEnds: joins that have no end in sight are given up.
func TestSplitEnds(t *testing.T) {
	var b strings.Builder
	b.WriteString("package p\nxs := [")
	for i := range 1000 {
		fmt.Fprintf(&b, "%d, ", i)
	}
	b.WriteString("0]\nallow if { some a in xs; some b in xs; some c in xs; a != b; b != c; input.attributes.request.http.headers[sprintf(\"%v\", [c])] == \"x\" }\n")
	p, err := split("m", b.String(), "data.p.allow", 50*time.Millisecond)
	if !p.Nothing() || !errors.Is(err, errCostly) {
		t.Errorf("%v, %+v", err, p.Remote)
	}
}

// FuzzSplit: whatever the text, no panic, and never allowed and refused at once.
func FuzzSplit(f *testing.F) {
	for _, seed := range []string{
		"package p\nallow if input.parsed_path[0] == \"a\"", "package p\nallow if not x\nx if input.attributes.request.http.method in [\"GET\"]",
		"package p\nallow if regex.match(`(`, input.attributes.request.http.path)", "package p\nallow := {\"allowed\": 1}", "package p\nallow if allow", "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, module string) {
		p, _ := split("m", module, "data.p.allow", splitTimeout)
		if regoform.And(p.Allow(), p.Refuse()).Op() == regoform.OpTrue {
			t.Error("allowed and refused")
		}
		if len(p.Remote) == 1 && p.Remote[0].Why == "the analysis failed" {
			t.Error("a panic")
		}
	})
}
