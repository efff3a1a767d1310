package rego

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/writ-mesh/writ/authz/basedoc"
	"github.com/writ-mesh/writ/internal/proctest"
)

// programOf makes a program of modules and data as a reload does. It is nil if they do not
// compile.
func programOf(t testing.TB, texts map[string]string, data map[string]any, query string, o Options) *Program {
	t.Helper()
	parsed := make(map[string]*ast.Module, len(texts))
	for name, text := range texts {
		m, err := ast.ParseModuleWithOpts(name, text, ast.ParserOptions{RegoVersion: ast.RegoV1, ProcessAnnotation: true})
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		parsed[name] = m
	}
	c := ast.NewCompiler().WithCapabilities(capabilities(o))
	Share(c)
	if c.Compile(parsed); c.Failed() {
		return nil
	}
	slim := Slim(c, parsed, false, ast.MustParseBody(query))
	Trim(slim)
	if data == nil {
		data = map[string]any{}
	}
	store := basedoc.New()
	if err := storage.WriteOne(context.Background(), store, storage.AddOp, storage.RootPath, data); err != nil {
		t.Fatal(err)
	}
	o.Undefined = true
	p, err := Adopt(context.Background(), slim, store, query, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// answers are what a program gives for some inputs; an error is one whatever its text.
func answers(t testing.TB, p *Program, inputs []any) (out []string, errs int) {
	t.Helper()
	for _, in := range inputs {
		rs, err := p.prepared.Eval(context.Background(), oparego.EvalParsedInput(ast.MustInterfaceToValue(in)), oparego.EvalTransaction(p.txn))
		if err != nil {
			out, errs = append(out, "error"), errs+1
			continue
		}
		var all []string
		for _, r := range rs {
			all = append(all, fmt.Sprint(r.Bindings, r.Expressions))
		}
		slices.Sort(all)
		out = append(out, strings.Join(all, "; "))
	}
	return out, errs
}

// Of random modules and data that are edited again and again, programs with the same
// content decide alike: what was kept for one is right for the other.
func TestContentDecides(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12)) //nolint:gosec // a test's
	inputs := []any{map[string]any{}, map[string]any{"x": 0, "team": "t1"}, map[string]any{"x": 1, "team": "t3"}, map[string]any{"x": 2, "team": "none"}}
	kept, changed, defined := 0, 0, 0
	for range 8 {
		const n = 22
		texts := teams(r, n)
		data := map[string]any{"base": map[string]any{"n": 1}, "known": map[string]any{"t1": map[string]any{"a": 1}}, "other": 0}
		of := r.IntN(n)
		query := []string{
			fmt.Sprintf("x := data.t%d", of), fmt.Sprintf("x := data.t%d.o", of), fmt.Sprintf("x := data.t%d.s", of), "x := data[input.team]",
			fmt.Sprintf("x := data.t%d.below; y := data.known", of), fmt.Sprintf("x := data.t%d with data.base.n as 3", of), fmt.Sprintf("x := data.t%d[_]", of),
		}[r.IntN(7)]
		seen := make(map[[32]byte][]string)
		var last [32]byte
		for range 20 {
			for range 1 + r.IntN(2) {
				edit(r, texts, data, n)
			}
			p := programOf(t, texts, data, query, Options{})
			if p == nil {
				texts = teams(r, n)
				continue
			}
			got, errs := answers(t, p, inputs)
			if want, ok := seen[p.id]; !ok {
				changed++
			} else if kept++; !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: the same content, but\n%q\nafter\n%q\nof %v %v", query, got, want, texts, data)
			}
			if p.id == last && errs == 0 {
				defined++
			}
			seen[p.id], last = got, p.id
		}
	}
	if kept < 30 || changed < 30 || defined < 10 {
		t.Errorf("%d programs as before, %d others, %d kept at once and defined", kept, changed, defined)
	}
}

// edit changes something, mostly a little.
func edit(r *rand.Rand, texts map[string]string, data map[string]any, n int) {
	name := fmt.Sprintf("m%d.rego", r.IntN(n))
	switch r.IntN(9) {
	case 0:
		texts[name] = teams(r, n)[name]
	case 1:
		delete(texts, name)
	case 2:
		texts[name] = strings.Replace(teams(r, n)[name], "package ", "# a comment\n\npackage ", 1)
	case 3, 4:
		if text, ok := texts[name]; ok {
			texts[name] = text + "\n# another\n"
		}
	case 5:
		if text, ok := texts[name]; ok { // makes up variables in front of others'
			texts[name] = text + fmt.Sprintf("\nmore%d := {y | some y in [1, 2]; y > %d}\n", r.IntN(3), r.IntN(3))
		}
	case 6:
		data["base"] = map[string]any{"n": r.IntN(2)}
	case 7:
		data["known"] = map[string]any{fmt.Sprint("t", r.IntN(3)): map[string]any{"a": r.IntN(2)}}
	default:
		data["other"] = r.IntN(100)
	}
}

// What a program cannot look at is no part of its content; all else is.
func TestContent(t *testing.T) {
	texts := map[string]string{
		"a.rego": "package a\n\nimport data.lib\n\ndefault allow := false\n\nallow if {\n\tsome role in data.roles[input.user]\n\tlib.known(role)\n\tnot denied\n}\n\ndenied if data.teams[input.team].denied\n",
		"b.rego": "package lib\n\nknown(role) if role == \"r\"\n\nknown(role) if {\n\tx := count(role)\n\tx > 3\n} else := false if role == \"s\"\n",
		"c.rego": "package teams.one\n\ndenied if input.user == \"mallory\"\n",
		"d.rego": "package other\n\np := [x | some x in [1, 2, 3]]\n\nq if input.y\n",
	}
	data := map[string]any{"roles": map[string]any{"u": []any{"r"}}, "unread": 1, "lib": map[string]any{"text": "a"}}
	change := func(file, old, by string) func(map[string]string, map[string]any) {
		return func(texts map[string]string, _ map[string]any) {
			if !strings.Contains(texts[file], old) {
				t.Fatalf("%s is not in %s", old, file)
			}
			texts[file] = strings.Replace(texts[file], old, by, 1)
		}
	}
	add := func(file, text string) func(map[string]string, map[string]any) {
		return func(texts map[string]string, _ map[string]any) { texts[file] += text }
	}
	set := func(name string, v any) func(map[string]string, map[string]any) {
		return func(_ map[string]string, data map[string]any) { data[name] = v }
	}
	for name, c := range map[string]struct {
		edit func(map[string]string, map[string]any)
		same bool
	}{
		"nothing":            {func(map[string]string, map[string]any) {}, true},
		"a comment":          {add("a.rego", "# more"), true},
		"lines":              {change("a.rego", "\nallow if", "\n\n\n# why\nallow if"), true},
		"another module":     {change("d.rego", "input.y", "input.z"), true},
		"variables in front": {add("0.rego", "package other2\np := {x | some x in [1]; x != 2}"), true},
		"a module less":      {func(texts map[string]string, _ map[string]any) { delete(texts, "d.rego") }, true},
		"the name of a file": {func(texts map[string]string, _ map[string]any) {
			texts["z.rego"] = texts["a.rego"]
			delete(texts, "a.rego")
		}, true},
		"the name of a variable":     {change("b.rego", "x := count(role)\n\tx > 3", "y := count(role)\n\ty > 3"), true},
		"data that nobody reads":     {set("unread", 2), true},
		"what is said about a rule":  {change("a.rego", "denied if", "# METADATA\n# title: refused\ndenied if"), true},
		"a rule":                     {change("a.rego", "not denied", "not not_denied"), false},
		"a constant":                 {change("b.rego", `"r"`, `"t"`), false},
		"a constant of another kind": {change("b.rego", "x > 3", "x > 3.0"), false},
		"a negation":                 {change("a.rego", "not denied", "denied"), false},
		"a default":                  {change("a.rego", "allow := false", "allow := true"), false},
		"an else":                    {change("b.rego", "else := false", "else := true"), false},
		"other variables":            {change("b.rego", "x > 3", "role > 3"), false},
		"a rule beside it":           {add("a.rego", "allow if input.admin"), false},
		"a rule of another module":   {add("e.rego", "package a\nallow if input.admin"), false},
		"a function's":               {add("e.rego", "package lib\nknown(\"x\")"), false},
		"a rule that is reached":     {change("c.rego", "mallory", "eve"), false},
		"a team more":                {add("e.rego", "package teams.two\ndenied := true"), false},
		"a team less":                {func(texts map[string]string, _ map[string]any) { delete(texts, "c.rego") }, false},
		"a rule in place of data": {func(texts map[string]string, data map[string]any) {
			delete(data, "roles")
			texts["e.rego"] = "package roles\nu := [\"r\"]"
		}, false},
		"data":              {set("roles", map[string]any{"u": []any{"s"}}), false},
		"data beside rules": {set("teams", map[string]any{"two": map[string]any{"denied": true}}), false},
		"no data":           {func(_ map[string]string, data map[string]any) { delete(data, "roles") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			newTexts, newData := maps.Clone(texts), maps.Clone(data)
			c.edit(newTexts, newData)
			if name == "a rule" {
				newTexts["a.rego"] += "\nnot_denied if true"
			}
			before, after := programOf(t, texts, data, "data.a.allow", Options{}), programOf(t, newTexts, newData, "data.a.allow", Options{})
			if after == nil {
				t.Fatal("it does not compile")
			}
			if same := before.id == after.id; same != c.same {
				t.Errorf("the same content: %v", same)
			}
		})
	}
	ids := map[[32]byte]string{}
	for name, p := range map[string]*Program{
		"as it is":      programOf(t, texts, data, "data.a.allow", Options{}),
		"another query": programOf(t, texts, data, "data.a.denied", Options{}),
		"with":          programOf(t, texts, data, `data.a.allow with input.user as "u"`, Options{}),
		"with another":  programOf(t, texts, data, `data.a.allow with input.user as "v"`, Options{}),
		"network":       programOf(t, texts, data, "data.a.allow", Options{Network: true}),
	} {
		if other, ok := ids[p.id]; ok {
			t.Errorf("the same content: %s and %s", name, other)
		}
		ids[p.id] = name
	}
}

// A program whose decisions depend on more, or on more data than are looked through, is
// like no other.
func TestContentUnknown(t *testing.T) {
	large := map[string]any{"roles": strings.Repeat("x", maxContent)} // and a few bytes to say so
	for name, c := range map[string]struct {
		text string
		data map[string]any
		same bool
	}{
		"impure":              {`allow if time.now_ns() > 5`, nil, false},
		"large data":          {`allow if data.roles`, large, false},
		"large data not read": {`allow if data.role`, large, true},
	} {
		if c.data != nil && proctest.Few() {
			continue // the detector takes ten seconds to read them
		}
		t.Run(name, func(t *testing.T) {
			texts := map[string]string{"a.rego": "package a\n" + c.text}
			first, second := programOf(t, texts, c.data, "data.a.allow", Options{}), programOf(t, texts, c.data, "data.a.allow", Options{})
			if same := first.id == second.id; same != c.same {
				t.Errorf("the same content: %v", same)
			}
		})
	}
}

// Programs with the same content find what was kept by the same keys, in whatever order
// their modules read the input.
func TestContentKeys(t *testing.T) {
	p := func(file string) *Program {
		return programOf(t, map[string]string{
			file: "package a\nallow if data.b[_][_]",
			"b":  "package b.b\np if input.attributes.request.http.method == \"GET\"\nq if input.parsed_path[0]\nr if input.jwt",
			"c":  "package b.c\nq if { input.attributes.request.http.path; input.attributes.request.http.host; input.parsed_path[0] }",
		}, nil, "data.a.allow", Options{})
	}
	want, ok := p("a").Key(input(t, request(), InputOptions{}))
	if !ok {
		t.Fatal("no key")
	}
	for i := range 50 { // OPA gives what a reference reaches in any order
		if got, _ := p(fmt.Sprint(i)).Key(input(t, request(), InputOptions{})); got != want {
			t.Fatal("another key")
		}
	}
}
