package rego

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/open-policy-agent/opa/v1/ast"
)

// What is remembered of a request is decided as the request is, and has its key.
func TestRemembered(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // the same cases each time
	for _, policy := range propertyPolicies {
		p := compile(t, "package x\n"+policy, "data.x.d")
		for range 60 {
			req, o := randomRequest(r)
			in := input(t, req, o)
			m := p.Remember(in)
			if m == nil {
				t.Fatalf("%s: nothing is remembered of %v", policy, in.Document())
			}
			want, _ := p.Key(in)
			key, again, d, err := p.EvalRemembered(t.Context(), m, 0)
			if key != want || !p.Remembers(again) || again.document != m.document {
				t.Errorf("%s: %v has another key", policy, in.Document())
			}
			if got, want := told(d, err), told(p.Eval(t.Context(), in, 0)); got != want {
				t.Errorf("%s: %v is decided as %s, and as %s when it is remembered", policy, in.Document(), want, got)
			}
		}
	}
}

func told(d Decision, err error) string {
	b, _ := json.Marshal([]any{d.Result(), errors.Is(err, ErrUndefined), err != nil})
	return string(b)
}

// A program decides what another one has read if it reads the same, and not if they decide
// alike or by something else too.
func TestFollows(t *testing.T) {
	first := compile(t, "package x\nd if { input.parsed_path[0] == \"a\"; input.attributes.request.http.method == \"GET\" }", "data.x.d")
	for policy, want := range map[string]bool{
		`d if { input.parsed_path[0] == "a"; input.attributes.request.http.method == "GET" } # alike`: false,
		`d if { input.attributes.request.http.method != "GET"; input.parsed_path[1] }`:                true,
		`d if { input.parsed_path[0] == "a" }`:                                                        false,
		`d if { input.parsed_path[0] == "a"; input.attributes.request.http }`:                         false,
		`d if { input.parsed_path[0] == "a"; input.attributes.request.http.host == "GET" }`:           false,
		`d if { input.parsed_path[0] == "a"; input.attributes.request.http.method; time.now_ns() }`:   false,
	} {
		next := compile(t, "package x\n"+policy, "data.x.d")
		if next.Follows(first) != want {
			t.Errorf("%s: follows %v, want %v", policy, !want, want)
		}
		m := first.Remember(input(t, request(func(*authv3.AttributeContext) {}), InputOptions{}))
		if next.Remembers(m) != (next.id == first.id) {
			t.Errorf("%s: remembers %v", policy, !next.Remembers(m))
		}
	}
}

// Much is not remembered, and neither is what an impure policy reads.
func TestNotRemembered(t *testing.T) {
	long := input(t, request(func(a *authv3.AttributeContext) { a.Request.Http.Path = "/" + strings.Repeat("a", maxRemembered) }), InputOptions{})
	if m := compile(t, "package x\nd if input.parsed_path[0] == \"a\"", "data.x.d").Remember(long); m != nil {
		t.Errorf("%d bytes are remembered", m.Size())
	}
	if compile(t, "package x\nd if input.source_principal == \"a\"", "data.x.d").Remember(long) == nil {
		t.Error("what is not read counts")
	}
	if compile(t, "package x\nd if { input.source_principal == \"a\"; time.now_ns() > 0 }", "data.x.d").Remember(long) != nil {
		t.Error("what an impure policy reads is remembered")
	}
}

func TestNarrow(t *testing.T) {
	for policy, want := range map[string]bool{
		`d := true`: true,
		`d if input.attributes.request.http.method == "GET"`:           true,
		`d if input.attributes.request.http.headers["x-a"] == "GET"`:   true,
		`d if input.jwt.claims.sub == input.attributes.source.address`: true,
		`d if count(input) > 1`:                                false,
		`d if input.attributes`:                                false,
		`d if input.attributes.request`:                        false,
		`d if input.attributes.request.http`:                   false,
		`d if input.attributes.request.http.headers[_] == "a"`: false,
		`d if input.attributes.request.http.headerMap`:         false,
		`d if input.attributes.request.http.body == "a"`:       false,
		`d if input.attributes.request.http.rawBody == "a"`:    false,
		`d if input.parsed_body.a == "a"`:                      false,
		`d if count(input.jwt.claims) == 1`:                    false,
		`d if count(input.jwt) == 1`:                           false,
	} {
		if got := compile(t, "package x\n"+policy, "data.x.d").Narrow(); got != want {
			t.Errorf("%s: narrow %v, want %v", policy, got, want)
		}
	}
}

// FuzzReadValue takes any bytes: what is read of them is what would be written.
func FuzzReadValue(f *testing.F) {
	for _, text := range []string{`null`, `true`, `-1.5e300`, `"a"`, `["a", {}, []]`, `{"a": {"b": [1, false]}, "c": ""}`} {
		v, err := wholeJSON([]byte(text))
		if err != nil {
			f.Fatal(err)
		}
		b, _ := appendValue(nil, v)
		f.Add(string(b))
		f.Add(string(b[:len(b)-1]))
	}
	f.Add("[\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
	f.Add("{\x02\"\x01an\"\x01an")
	f.Fuzz(func(t *testing.T, s string) {
		v, rest, err := readValue(s)
		if err != nil {
			return
		}
		b, ok := appendValue(nil, v)
		if !ok {
			t.Fatalf("%q: %v cannot be written", s, v)
		}
		again, end, err := readValue(string(b))
		if err != nil || end != "" || ast.Compare(v, again) != 0 {
			t.Fatalf("%q is %v, which is written as %q and read as %v, %q, %v", s[:len(s)-len(rest)], v, b, again, end, err)
		}
	})
}

func BenchmarkEvalRemembered(b *testing.B) {
	p := compile(b, "package x\nd if { input.parsed_path[0] == \"a\"; input.attributes.request.http.method == \"GET\" }", "data.x.d")
	m := p.Remember(input(b, request(func(*authv3.AttributeContext) {}), InputOptions{}))
	for b.Loop() {
		if _, _, _, err := p.EvalRemembered(context.Background(), m, 0); err != nil && !errors.Is(err, ErrUndefined) {
			b.Fatal(err)
		}
	}
}
