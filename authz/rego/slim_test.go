package rego

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/writ-mesh/writ/authz/basedoc"
)

// teams is a bundle of modules of which some refer to others in every way that Rego has.
func teams(r *rand.Rand, n int) map[string]string {
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	out := map[string]string{}
	for i := range n {
		of := func() string { return fmt.Sprint("t", r.IntN(n)) }
		var b strings.Builder
		// A package has several modules now and then, packages below it, and no rules.
		fmt.Fprintf(&b, "package %s%s\n", pick(fmt.Sprint("t", i), fmt.Sprint("t", i), of()), pick("", "", ".below"))
		for k := range r.IntN(6) % 4 {
			switch name := fmt.Sprintf("%s%d_%d", pick("p", "q"), i, k); r.IntN(14) {
			case 0:
				fmt.Fprintf(&b, "%s := data.%s\n", name, "base")
			case 1:
				fmt.Fprintf(&b, "%s if input.x == %d\n", name, r.IntN(3))
			case 2:
				fmt.Fprintf(&b, "f%s(x) := x + %d\n", name, r.IntN(3))
			case 3:
				fmt.Fprintf(&b, "s contains %d\n", i)
			case 4:
				fmt.Fprintf(&b, "%s := y if { y := [x | x := data.%s.s[_]] }\n", name, of())
			case 5:
				fmt.Fprintf(&b, "%s if count(object.get(data.known, input.team, {})) == 0\n", name)
			case 6:
				fmt.Fprintf(&b, "o[%q] := %d\n", name, i)
			case 7:
				fmt.Fprintf(&b, "o.deep[k] := %d if k := %q\n", i, name)
			case 8:
				fmt.Fprintf(&b, "%s := 1 if input.x == 0\nelse := z if { z := data.%s.o }\n", name, of())
			case 9:
				fmt.Fprintf(&b, "%s := v if { v := data.base.n with data.base as {\"n\": %d} }\n", name, i)
			default:
				fmt.Fprintf(&b, "%s := %d\n", name, i)
			}
		}
		out[fmt.Sprintf("m%d.rego", i)] = b.String()
	}
	return out
}

func parseAll(t testing.TB, texts map[string]string) map[string]*ast.Module {
	t.Helper()
	out := make(map[string]*ast.Module, len(texts))
	for name, text := range texts {
		m, err := ast.ParseModuleWithOpts(name, text, ast.ParserOptions{RegoVersion: ast.RegoV1})
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		out[name] = m
	}
	return out
}

// What slim compilers decide is what the full ones do, of random modules, queries and
// inputs.
func TestSlim(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // a test's
	ctx := t.Context()
	left, compared, defined := 0, 0, 0
	for round := range 60 {
		const n = 24
		parsed := parseAll(t, teams(r, n))
		full := ast.NewCompiler()
		if full.Compile(parsed); full.Failed() {
			continue // two rules that do not go together, or a recursion
		}
		store := basedoc.New()
		for range 2 {
			of := r.IntN(n)
			query := []string{
				fmt.Sprintf("x := data.t%d", of), fmt.Sprintf("x := data.t%d.o", of), fmt.Sprintf("x := data.t%d[y]", of), fmt.Sprintf("x := data[input.team].s; y := data.t%d.s", of),
				fmt.Sprintf("data.t%d.s[x]", of), fmt.Sprintf("x := [v | v := data.t%d.below[_]]", of), fmt.Sprintf("x := data.t%d.o.deep[_]", of),
			}[r.IntN(7)]
			body := ast.MustParseBody(query)
			slim := Slim(full, parsed, false, body)
			if slim == full {
				continue
			}
			left += len(full.Modules) - len(slim.Modules)
			Trim(slim)
			for _, in := range []map[string]any{{}, {"x": 0, "team": fmt.Sprint("t", of)}, {"x": 1, "team": "t1"}} {
				want, got := ask(ctx, t, full, store, query, in), ask(ctx, t, slim, store, query, in)
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("round %d: %s of %v is %v, want %v", round, query, in, got, want)
				}
				compared++
				if len(want) > 0 {
					defined++
				}
			}
		}
	}
	if left < 500 || compared < 100 || defined < 50 {
		t.Errorf("%d modules left out, %d answers compared, %d of them something", left, compared, defined)
	}
}

// What compilers with shared terms decide is what others do, and what is wrong is where it
// was: of random modules, and of what could be mixed up.
func TestShare(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6)) //nolint:gosec // a test's
	ctx := t.Context()
	rounds := []map[string]string{{
		"a.rego": "package a\nnumbers := [1, 1.0, 1e0, \"1\", true]\none := 1\nother := 1.0\ntext := \"1\"\nname := [x | x := \"x\"]\n" +
			"p := 1 if input.x == 0\np := 2 if input.x == 0\nsame := input.x\nmerged := data.c\nsum := x + input.x if x := data.b.f(input.x)\n",
		"b.rego": "package b\nf(x) := x + 1\nk[input.team] := input.x\nk.t := data.known[input.team] if not input.y\n" +
			"every_one if every v in [1, 2] { v > input.x }\nnested := {n: c | some n in data.a.numbers; c := count([1 | data.a.numbers[_] == n])}\n" +
			"mocked := y if { y := data.a.sum with input.x as 2 }\ndeep := input.list[data.a.one].x\nelse_one := 1 if input.x == 7\nelse := 2 if input.x == 1\nelse := input.x\n",
		"c.rego": "package c\nx := 1\n",
	}}
	for range 60 {
		rounds = append(rounds, teams(r, 12))
	}
	compared, defined, failed := 0, 0, 0
	for round, texts := range rounds {
		parsed := parseAll(t, texts)
		plain, shared := ast.NewCompiler(), ast.NewCompiler()
		Share(shared)
		plain.Compile(parsed)
		shared.Compile(parsed)
		if plain.Failed() != shared.Failed() || fmt.Sprint(plain.Errors) != fmt.Sprint(shared.Errors) {
			t.Fatalf("round %d: %v, want %v", round, shared.Errors, plain.Errors)
		}
		if plain.Failed() {
			continue
		}
		Trim(shared)
		store := basedoc.New()
		if err := storage.WriteOne(ctx, store, storage.AddOp, storage.Path{"c"}, 5); err != nil { // which does not go with the rule
			t.Fatal(err)
		}
		queries := []string{"x := data.a.merged", "x := data", "x := data.a", "x := data.b", "x := data.a.p", "x := data.b.k", fmt.Sprintf("x := data.t%d", r.IntN(12))}
		for _, in := range []map[string]any{{}, {"x": 0, "team": "t1"}, {"x": 1, "team": "t2", "list": []any{1, map[string]any{"x": "y"}}}} {
			for _, query := range queries {
				want, got := ask(ctx, t, plain, store, query, in), ask(ctx, t, shared, store, query, in)
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("round %d: %s of %v is %v, want %v", round, query, in, got, want)
				}
				compared++
				for text := range want {
					if strings.Contains(text, "error") {
						failed++
					} else {
						defined++
					}
				}
			}
		}
	}
	if compared < 500 || defined < 200 || failed < 2 {
		t.Errorf("%d answers compared, %d of them something, %d errors", compared, defined, failed)
	}
}

// Rules have one term for what is the same, and each expression its own place.
func TestShared(t *testing.T) {
	c := ast.NewCompiler()
	Share(c)
	c.Compile(parseAll(t, map[string]string{"a.rego": "package a\np if input.x.y == 1\nq if input.x.y == 2", "b.rego": "package b\nr if input.x.y == 1.0"}))
	seen := map[string]map[*ast.Term]bool{}
	rows := map[int]bool{}
	for _, m := range c.Modules {
		ast.WalkTerms(m, func(term *ast.Term) bool {
			text := term.String()
			if seen[text] == nil {
				seen[text] = map[*ast.Term]bool{}
			}
			seen[text][term] = true
			return false
		})
		ast.WalkExprs(m, func(x *ast.Expr) bool {
			rows[x.Location.Row] = true
			return false
		})
	}
	for text, want := range map[string]int{"input.x.y": 1, "1": 1, "1.0": 1, "2": 1, "eq": 2 /* the name and the reference */, "true": 1} {
		if len(seen[text]) != want {
			t.Errorf("%s: %d terms, want %d", text, len(seen[text]), want)
		}
	}
	if !rows[2] || !rows[3] {
		t.Errorf("expressions of lines %v", rows)
	}
}

// ask gives the results of a query in some order that does not depend on modules' names.
func ask(ctx context.Context, t *testing.T, c *ast.Compiler, store *basedoc.Store, query string, in map[string]any) map[string]int {
	t.Helper()
	rs, err := oparego.New(oparego.Query(query), oparego.Compiler(c), oparego.Store(store), oparego.Input(in)).Eval(ctx)
	out := map[string]int{}
	if err != nil {
		out[err.Error()]++
	}
	for _, result := range rs {
		out[fmt.Sprint(result.Bindings, len(result.Expressions))]++
	}
	return out
}

// All is kept where a query may reach all, where it asks what other modules are annotated
// with, and where what was parsed is not there; what is left out is compiled nevertheless.
func TestSlimKeeps(t *testing.T) {
	texts := map[string]string{"main.rego": "package main\nallow if data.t1.p\nwhich if data[input.team].p", "meta.rego": "package meta\nx := rego.metadata.chain()"}
	for i := range 40 {
		texts[fmt.Sprintf("t%d.rego", i)] = fmt.Sprintf("package t%d\np if input.x == %d\nsent := http.send({\"url\": \"http://localhost\", \"method\": \"GET\"})", i, i)
	}
	parsed := parseAll(t, texts)
	full := ast.NewCompiler()
	if full.Compile(parsed); full.Failed() {
		t.Fatal(full.Errors)
	}
	for query, want := range map[string]int{
		"data.t7.p": 1, "data.t7.nothing": 0, "data.t7.p; data.t8.p": 2, "data": 42, "x = data": 42, "data[input.x]": 42, "data.main.allow": 42,
		"data.meta.x": 42, "walk(data, x)": 42,
	} {
		slim := Slim(full, parsed, false, ast.MustParseBody(query))
		if len(slim.Modules) != want {
			t.Errorf("%s: %d modules, want %d", query, len(slim.Modules), want)
		}
		if _, err := Adopt(t.Context(), slim, basedoc.New(), query, Options{Undefined: true}); err == nil || !strings.Contains(err.Error(), "http.send is not allowed") {
			t.Errorf("%s: error %v", query, err)
		}
	}
	delete(parsed, "t7.rego")
	if slim := Slim(full, parsed, false, ast.MustParseBody("data.t7.p")); slim != full {
		t.Error("a module is missing")
	}
}
