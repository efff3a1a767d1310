package rego

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// attackCases are bodies of a rule that would take all memory or hours. Beside each
// is the function that refuses.
var attackCases = map[string]struct{ body, want string }{
	"shift":               {`bits.lsh(1, 100000000000) > 0`, "bits.lsh"},
	"squares":             {squares(40), "mul"},
	"product":             {`product([n | numbers.range(1, 5000)[_]; n := 99999999999999999999]) > 0`, "product"},
	"number in JSON":      {`json.unmarshal("[[{\"a\": 1e5000}]]")[0][0].a + 1 > 0`, "json.unmarshal"},
	"replace":             {text1M + `replace(x, "a", x) != ""`, "replace"},
	"replace nothing":     {text1M + `replace(x, "", x) != ""`, "replace"},
	"replace_n":           {text1M + `strings.replace_n({"a": x}, x) != ""`, "strings.replace_n"},
	"regex.replace":       {text1M + `regex.replace(x, "a", x) != ""`, "regex.replace"},
	"regex.replace with":  {text1M + `regex.replace(x, "(a*)", replace(x, "a", "$1")) != ""`, "regex.replace"},
	"large pattern":       {text1M + `regex.match(x, "a")`, "regex.match"},
	"concat":              {text1M + `concat(x, [x | numbers.range(1, 20)[_]]) != ""`, "concat"},
	"concat of little":    {text1M + `concat(x, ["" | numbers.range(1, 20)[_]]) != ""`, "concat"},
	"doubling":            {doubling(`concat("", [x%[1]d, x%[1]d])`), "concat"},
	"doubling by sprintf": {doubling(`sprintf("%%s%%s", [x%[1]d, x%[1]d])`), "sprintf"},
	"sprintf":             {text1M + `sprintf(replace(x, "a", "%[1]s"), [x]) != ""`, "sprintf"},
	"sprintf of a list":   {doubled + `sprintf("%v", [x39]) != ""`, "sprintf"},
	"wide sprintf":        {`sprintf("` + strings.Repeat("%999999d", 100) + `", [1]) != ""`, "sprintf"},
	"starred sprintf":     {`sprintf("` + strings.Repeat("%*d", 100) + `", [999999, 1]) != ""`, "sprintf"},
	"JSON of a list":      {doubled + `json.marshal(x39) != ""`, "json.marshal"},
	"JSON with options":   {doubled + `json.marshal_with_options(x39, {"pretty": true}) != ""`, "json.marshal_with_options"},
	"indented JSON":       {text1M + `json.marshal_with_options([[[x]]], {"indent": x}) != ""`, "json.marshal_with_options"},
	"YAML of a list":      {doubled + `yaml.marshal(x39) != ""`, "yaml.marshal"},
	"template":            {`strings.render_template("{{range .a}}{{range $.a}}{{range $.a}}{{range $.a}}x{{end}}{{end}}{{end}}{{end}}", {"a": numbers.range(1, 1000)}) != ""`, "strings.render_template"},
	"printf in a template": {
		`strings.render_template("{{range .a}}{{printf \"%999999d\" 1}}{{end}}", {"a": numbers.range(1, 1000)}) != ""`, "strings.render_template",
	},
	"paths":              {`count(graph.reachable_paths({n: numbers.range(1, 30) | some n in numbers.range(1, 30)}, [1])) > 0`, "graph.reachable_paths"},
	"deep GraphQL":       {text1M + `graphql.parse_query(replace(x, "a", "{a"))`, "graphql.parse_query"},
	"deep Rego":          {text1M + `rego.parse_module("x", replace(x, "a", "("))`, "rego.parse_module"},
	"globs":              {text1M + `regex.globs_match(x, "a")`, "regex.globs_match"},
	"interpolated":       {doubling(`$"{x%[1]d}{x%[1]d}"`), "internal.template_string"},
	"query of an object": {doubled + `urlquery.encode_object({"a": sprintf("%v", [x39])}) != ""`, "sprintf"},
}

// text1M defines x, a million letters of the request's body.
const text1M = "x := input.attributes.request.http.body\n"

func millionLetters(a *authv3.AttributeContext) { a.Request.Http.Body = strings.Repeat("a", 1<<20) }

// squares multiplies a number with itself, again and again.
func squares(n int) string {
	return "x0 := 99999999\n" + steps(n, `x%[1]d * x%[1]d`) + fmt.Sprintf("x%d > 0", n)
}

// doubling makes a text of twice the length, again and again.
func doubling(expr string) string {
	return "x0 := \"aaaaaaaaaa\"\n" + steps(40, expr) + `x40 != ""`
}

// doubled defines x39, a small value in memory that is endless as text. It needs
// the rules of doubledRules.
const doubled = "x39 := p39\n"

var doubledRules = strings.ReplaceAll("x0 := [1]\n"+steps(39, `[x%[1]d, x%[1]d]`), "x", "p")

func steps(n int, expr string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "x%d := %s\n", i+1, fmt.Sprintf(expr, i))
	}
	return b.String()
}

// Each attack ends with an error of the evaluation at once, not only with an undefined
// value, out of which a policy might make an allowance.
func TestBuiltinLimits(t *testing.T) {
	for name, c := range attackCases {
		t.Run(name, func(t *testing.T) {
			module := "package x\ndefault d := true\nd := false if bad\nbad if {\n" + c.body + "\n}\n"
			if strings.Contains(c.body, doubled) {
				module += doubledRules
			}
			p := compile(t, module, "data.x.d")
			d, err := p.Eval(context.Background(), input(t, request(millionLetters), InputOptions{}), time.Minute)
			if err == nil || !strings.Contains(err.Error(), c.want+": ") {
				t.Fatalf("%v, error %v, want one of %s", d.Allowed, err, c.want)
			}
		})
	}
}

// What policies do is far below.
func TestBuiltinLimitsAllow(t *testing.T) {
	for name, body := range map[string]string{
		"shift":     `bits.lsh(1, 64) == 18446744073709551616`,
		"multiply":  `123456789 * 987654321 == 121932631112635269`,
		"product":   `product(numbers.range(1, 20)) == 2432902008176640000`,
		"replace":   `replace("a.b.c", ".", "--") == "a--b--c"`,
		"replace_n": `strings.replace_n({"<": "&lt;"}, "<b>") == "&lt;b>"`,
		"regex":     `regex.replace("abc", "b(.)", "$1$1") == "acc"`,
		"sprintf":   `sprintf("%s has %05d of %v", ["a", 5, [1, "b"]]) == "a has 00005 of [1, \"b\"]"`,
		"concat":    `concat("/", ["a", "b"]) == "a/b"`,
		"JSON":      `json.unmarshal(json.marshal({"a": [1, 2.5e3]})) == {"a": [1, 2500]}`,
		"template":  `strings.render_template("{{range .a}}{{.}};{{end}}", {"a": [1, 2]}) == "1;2;"`,
		"paths":     `graph.reachable_paths({"a": ["b"], "b": ["c"], "c": []}, ["a"]) == {["a", "b", "c"]}`,
		"number":    `to_number("1e3") == 1000`,
		"GraphQL":   `graphql.is_valid("{a}", "type Query { a: Int }")`,
		"template string": `x := "b"
			$"a{x}" == "ab"`,
	} {
		t.Run(name, func(t *testing.T) {
			p := compile(t, "package x\nd if {\n"+body+"\n}", "data.x.d")
			if d, err := p.Eval(context.Background(), input(t, request(), InputOptions{}), time.Minute); err != nil || !d.Allowed {
				t.Errorf("%v, %v", d, err)
			}
		})
	}
}

// An evaluation that takes memory is cancelled long before its time is over.
func TestMemoryLimit(t *testing.T) {
	for name, rule := range map[string]string{
		"comprehension": `d := count([[a, b] | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000)]) > 0`,
		"addresses":     `d := count(net.cidr_expand("::/0")) > 0`,
		"objects":       `d := count({a: {b: a | some b in numbers.range(1, 1000)} | some a in numbers.range(1, 10000000)}) > 0`,
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Compile(context.Background(), Source{Modules: map[string]string{"x.rego": "package x\n" + rule}}, "data.x.d", Options{Memory: 4 << 20})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Eval(context.Background(), input(t, request(), InputOptions{}), 10*time.Minute); !errors.Is(err, ErrMemory) {
				t.Errorf("error %v, want %v", err, ErrMemory)
			}
		})
	}
}

// A rule that doubles a value again and again within itself does not compile.
func TestGrowth(t *testing.T) {
	for name, c := range map[string]struct {
		rule string
		ok   bool
	}{
		"lists":    {"d if {\nx0 := [1]\n" + steps(39, `[x%[1]d, x%[1]d]`) + "x39[0]\n}", false},
		"objects":  {"d if {\nx0 := 1\n" + steps(39, `{"a": x%[1]d, "b": x%[1]d}`) + "x39.a\n}", false},
		"unified":  {"d if {\nx0 = 1\n" + strings.ReplaceAll(steps(39, `{"a": x%[1]d, "b": x%[1]d}`), ":=", "=") + "x39.a\n}", false},
		"nested":   {"d if {\nx0 := [1]\n" + steps(20, `[x%[1]d, x%[1]d]`) + "y := [z | z := [x20, x20]]\ny[0]\n}", false},
		"function": {"f(x0) if {\n" + steps(39, `[x%[1]d, x%[1]d]`) + "x39[0]\n}\nd if f(1)", false},
		"a little": {"d if {\nx0 := [1]\n" + steps(10, `[x%[1]d, x%[1]d]`) + "x10[0]\n}", true},
		"circle":   {"d if {\nx = [y]\ny = x[0]\n}", true},
	} {
		_, err := Compile(context.Background(), Source{Modules: map[string]string{"x.rego": "package x\n" + c.rule}}, "data.x.d", Options{})
		if grows := err != nil && strings.Contains(err.Error(), "put together"); grows == c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLargeDecision(t *testing.T) {
	for name, rule := range map[string]string{
		"text": `d := {"allowed": true, "body": input.attributes.request.http.body}`,
		"list": "d := {\"allowed\": true, \"dynamic_metadata\": {\"a\": x}} if {\n" + doubled + "x := x39\n}\n" + doubledRules,
	} {
		t.Run(name, func(t *testing.T) {
			p := compile(t, "package x\n"+rule, "data.x.d")
			_, err := p.Eval(context.Background(), input(t, request(millionLetters), InputOptions{}), time.Minute)
			var form *FormError
			if !errors.As(err, &form) || !strings.Contains(err.Error(), "more than") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A built-in function that does not return holds no request; when enough of them do
// not, the policy's further requests are refused at once.
func TestStuck(t *testing.T) {
	p := compile(t, "package x\nd if startswith(input.parsed_path[0], \"a\")", "data.x.d")
	release, entered := make(chan struct{}), make(chan struct{}, maxStuck)
	// In place of a function that takes hours.
	stuck := func() (Decision, error) {
		w := newWatch(time.Millisecond, 0)
		defer w.stop()
		return p.run(w, nil, func() (Decision, error) {
			entered <- struct{}{}
			<-release
			return Decision{Allowed: true}, nil
		})
	}
	for range maxStuck {
		if d, err := stuck(); !errors.Is(err, ErrTimeout) || d.Allowed {
			t.Fatalf("%v, error %v", d, err)
		}
		<-entered
	}
	in := input(t, request(), InputOptions{})
	if _, err := p.Eval(context.Background(), in, time.Minute); !errors.Is(err, ErrStuck) {
		t.Fatalf("error %v, want %v", err, ErrStuck)
	}
	close(release)
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err := p.Eval(context.Background(), in, time.Minute); errors.Is(err, ErrUndefined) {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("error %v after all have ended", err)
		}
	}
}

// A panic in a built-in function is an error of the evaluation.
func TestPanicIsRefused(t *testing.T) {
	p := compile(t, "package x\nd := true", "data.x.d")
	w := newWatch(time.Minute, 0)
	defer w.stop()
	_, err := p.run(w, nil, func() (d Decision, err error) {
		defer recovered(&d, &err)
		panic("x")
	})
	var panicked *PanicError
	if !errors.As(err, &panicked) || panicked.Value != "x" || len(panicked.Stack) == 0 {
		t.Errorf("error %v", err)
	}
}

// The bounds are in front of functions that exist.
func TestLimitedBuiltinsExist(t *testing.T) {
	for _, name := range []string{"bits.lsh", "mul", "product", "concat", "replace", "sprintf", "json.marshal", "to_number", "internal.template_string"} {
		if ast.BuiltinMap[name] == nil || topdown.GetBuiltin(name) == nil {
			t.Errorf("%s is no function of this OPA", name)
		}
	}
}
