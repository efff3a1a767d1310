package rego

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-mesh/writ/authz/basedoc"
	"github.com/writ-mesh/writ/internal/proctest"
)

// linkedTeams are teams whose modules call each other's functions, and go by other names.
func linkedTeams(r *rand.Rand, n int) map[string]string {
	out := teams(r, n)
	for i := range n {
		name := fmt.Sprintf("m%d.rego", i)
		of := fmt.Sprint("t", r.IntN(n))
		switch r.IntN(12) {
		case 0:
			out[name] += fmt.Sprintf("call%d := data.%s.f(%d)\n", i, of, i)
		case 1:
			out[name] += "f(x) := x + 1\n"
		case 2:
			out[name] += fmt.Sprintf("f(x) := count(data.%s.s) + x\n", of)
		case 3:
			pkg, rest, _ := strings.Cut(out[name], "\n")
			out[name] = fmt.Sprintf("%s\nimport data.%s as other\n%sby%d := other.o\n", pkg, of, rest, i)
		case 4:
			pkg, rest, _ := strings.Cut(out[name], "\n")
			out[name] = fmt.Sprintf("%s\nimport data.%s\n%swhole%d if { x := %s; count(x) > 0 }\n", pkg, of, rest, i, of)
		case 5:
			out[name] += fmt.Sprintf("below.q%d := %d\n", i, i)
		case 6:
			out[name] += fmt.Sprintf("within%d := f(1)\n", i)
		case 7:
			if r.IntN(4) == 0 {
				out[name] += fmt.Sprintf("any%d := data[input.team].o\n", i)
			}
		case 8:
			out[name] += fmt.Sprintf("mock%d := v if { v := data.%s.o with data.%s.s as {1} }\n", i, of, fmt.Sprint("t", r.IntN(n)))
		}
	}
	return out
}

func linksOf(t *testing.T, into map[string][]Links, parsed map[string]*ast.Module) {
	t.Helper()
	for name, m := range parsed {
		l, ok := LinksOf(m)
		if !ok {
			t.Fatalf("nothing is known of\n%s", m)
		}
		into[name] = append(into[name], l)
	}
}

// What depends on a change is right or wrong among what it depends on as it is among all
// modules, and what queries reach that does not depend on it decides as before: of random
// modules and changes.
func TestLinked(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8)) //nolint:gosec // a test's
	store := basedoc.New()
	failed, partly, kept, answers, defined := 0, 0, 0, 0, 0
	most := 150
	if proctest.Few() {
		most = 15
	}
	for round := 0; partly < most; round++ {
		const n = 12
		before := parseAll(t, linkedTeams(r, n))
		old := ast.NewCompiler()
		if old.Compile(before); old.Failed() {
			continue
		}
		edit, changed := linkedTeams(r, n+1), make(map[string]bool)
		for range 1 + r.IntN(2) {
			changed[fmt.Sprintf("m%d.rego", r.IntN(n+1))] = true // the last one is new
		}
		maps.DeleteFunc(edit, func(name, _ string) bool { return !changed[name] })
		after := maps.Clone(before)
		maps.Copy(after, parseAll(t, edit))
		links := make(map[string][]Links)
		linksOf(t, links, before)
		fresh := make(map[string]*ast.Module)
		for name := range changed {
			fresh[name] = after[name]
		}
		linksOf(t, links, fresh)

		linked := Link(links)
		depend := linked.DependOn(changed)
		names := linked.With(depend)
		if len(names) == len(after) {
			continue
		}
		partly++
		full, part := ast.NewCompiler(), ast.NewCompiler()
		full.Compile(after)
		picked := make(map[string]*ast.Module)
		for name := range names {
			picked[name] = after[name]
		}
		part.Compile(picked)
		if full.Failed() != part.Failed() {
			t.Fatalf("round %d: of %v, changed are %v: %v; all: %v\n%v", round, slices.Sorted(maps.Keys(names)), changed, part.Errors, full.Errors, after)
		}
		if full.Failed() {
			if want, got := firstOf(full.Errors), firstOf(part.Errors); want != got && full.Errors[0].Code != ast.RecursionErr {
				t.Errorf("round %d: %s, want %s", round, got, want)
			}
			failed++
			continue
		}
		for range 3 {
			of := r.IntN(n)
			query := []string{fmt.Sprintf("x := data.t%d", of), fmt.Sprintf("x := data.t%d.o", of), fmt.Sprintf("x := data.t%d[y]", of), fmt.Sprintf("x := data.t%d.by%d", of, of)}[r.IntN(4)]
			body := ast.MustParseBody(query)
			reached := linked.Reached(body)
			by := old
			for name := range depend {
				if reached[name] {
					by = nil
				}
			}
			if by == nil {
				picked := maps.Clone(picked)
				for name := range reached {
					picked[name] = after[name]
				}
				by = ast.NewCompiler()
				if by.Compile(picked); by.Failed() {
					t.Fatal(by.Errors)
				}
			} else {
				kept++
			}
			for _, in := range []map[string]any{{}, {"x": 0, "team": fmt.Sprint("t", of)}} {
				want, got := ask(t.Context(), t, full, store, query, in), ask(t.Context(), t, by, store, query, in)
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("round %d: %s of %v is %v, want %v\n%v", round, query, in, got, want, after)
				}
				answers++
				if len(want) > 0 {
					defined++
				}
			}
		}
	}
	if failed < most/10 || kept < most/2 || defined < most/3 {
		t.Errorf("%d wrong, %d queries that nothing changed for, %d of %d answers something", failed, kept, defined, answers)
	}
}

func firstOf(all ast.Errors) string {
	texts := make([]string, len(all))
	for i, e := range all {
		texts[i] = e.Error()
	}
	slices.Sort(texts)
	return texts[0]
}

// What modules depend on, of all ways to say it.
func TestLinks(t *testing.T) {
	modules := parseAll(t, map[string]string{
		"leaf": "package teams.leaf\nimport data.lib.text as tx\np if tx.lower(input.x) == \"a\"",
		"user": "package teams.user\nallow if data.teams.leaf.p",
		"lib":  "package lib.text\nlower(x) := low if low := lower_(x)",
		"same": "package lib.text\nlower_(x) := lower(x)",
		"far":  "package far\nq := data.base.users[_]",
		"into": "package into\nq := data.far.q.deep.value",
		"tree": "package tree\nq := data.teams[input.team].p",
		"rule": "package above\nbelow := {\"x\": 1}",
		"pack": "package above.below\ny := 1",
		"deep": "package above.below.far.away\nz := 1",
		"else": "package other\np := 1 if input.x else := data.far.q if input.y",
		"none": "package none",
	})
	links := make(map[string][]Links)
	linksOf(t, links, modules)
	g := Link(links)
	for name, want := range map[string][2]string{ // what depends on it, and on what it depends
		"leaf": {"leaf tree user", "leaf lib same"},
		"user": {"tree user", "leaf lib same user"},
		"lib":  {"leaf lib same tree user", "lib same"},
		"same": {"leaf lib same tree user", "lib same"},
		"far":  {"else far into", "far"},
		"into": {"into", "far into"},
		"tree": {"tree", "leaf lib same tree user"},
		"rule": {"deep pack rule", "deep pack rule"},
		"pack": {"deep pack rule", "deep pack rule"},
		"deep": {"deep pack rule", "deep pack rule"},
		"none": {"none", "none"},
	} {
		is := [2]string{}
		for i, found := range []map[string]bool{g.DependOn(map[string]bool{name: true}), g.With(map[string]bool{name: true})} {
			is[i] = strings.Join(slices.Sorted(maps.Keys(found)), " ")
		}
		if is != want {
			t.Errorf("%s: %q, want %q", name, is, want)
		}
	}
	for query, want := range map[string]string{
		"data[\"a\\u0001\"]": strings.Join(slices.Sorted(maps.Keys(modules)), " "), "data.teams.user.allow": "leaf lib same user", "data.above": "deep pack rule", "data.far.q[x]": "far", "data.nobody": "", "data[x].p": strings.Join(slices.Sorted(maps.Keys(modules)), " "), "1 == 1": "",
	} {
		if got := strings.Join(slices.Sorted(maps.Keys(g.Reached(ast.MustParseBody(query)))), " "); got != want {
			t.Errorf("%s reaches %q, want %q", query, got, want)
		}
	}
	for name, text := range map[string]string{
		"annotations of others": "package a\np := rego.metadata.chain()",
		"a schema for others":   "# METADATA\n# scope: subpackages\n# schemas:\n# - input: schema.x\npackage a",
		"a name with zero":      "package a\np := data[\"x\\u0000\"]",
	} {
		m, err := ast.ParseModuleWithOpts("m", text, ast.ParserOptions{RegoVersion: ast.RegoV1, ProcessAnnotation: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := LinksOf(m); ok {
			t.Errorf("%s: something is known", name)
		}
	}
}
