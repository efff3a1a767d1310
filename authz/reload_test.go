package authz

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/writ-mesh/writ/authz/bundletest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// clusterOf is how many modules have to do with each other.
const clusterOf = 5

// reloadedModule is a module of team i of n, which refers to what others have, or to nothing
// that there is.
func reloadedModule(r *rand.Rand, i, n int) string {
	of := func() string {
		if r.IntN(25) == 0 {
			return fmt.Sprint("t", r.IntN(n))
		}
		return fmt.Sprint("t", i/clusterOf*clusterOf+r.IntN(clusterOf))
	}
	own := fmt.Sprint("t", i)
	if r.IntN(4) == 0 {
		own = of()
	}
	if r.IntN(4) == 0 {
		own += ".below"
	}
	text := "package " + own + "\n"
	if r.IntN(5) == 0 {
		text += fmt.Sprintf("import data.%s as other\nby%d := other.o\n", of(), i)
	}
	for k := range 1 + r.IntN(4) {
		name, value := fmt.Sprintf("p%d_%d", i, k), r.IntN(3)
		rules := []string{
			fmt.Sprintf("%s := %d", name, value),
			fmt.Sprintf("%s := data.base", name),
			fmt.Sprintf("%s if headers.x == \"%d\"", name, value),
			fmt.Sprintf("f(x) := x + %d", value),
			fmt.Sprintf("%s := data.%s.f(%d)", name, of(), i),
			fmt.Sprintf("g(x) := x if data.%s.s[x]\n%s := g(%d)", of(), name, i),
			fmt.Sprintf("s contains %d", i),
			fmt.Sprintf("%s := [x | x := data.%s.s[_]]", name, of()),
			fmt.Sprintf("%s if not data.%s.s[%d]", name, of(), i),
			fmt.Sprintf("o[%q] := %d", name, value),
			fmt.Sprintf("o.deep[k] := %d if k := %q", value, name),
			fmt.Sprintf("%s := 1 if headers.x == \"0\"\nelse := data.%s.o", name, of()),
			fmt.Sprintf("%s := v if { v := data.base.n with data.base as {\"n\": %d} }", name, value),
			fmt.Sprintf("%s := v if { v := data.%s.o with input.attributes.request.http.headers.x as \"1\" }", name, of()),
			fmt.Sprintf("%s := v if { v := data.%s.s with data.%s.s as {1} }", name, of(), of()),
			fmt.Sprintf("%s := [[p, v] | walk(data.%s.o, [p, v])]", name, of()),
			fmt.Sprintf("%s := {k: v | v := data.%s[k]}", name, of()),
			fmt.Sprintf("default d%s := %d\nd%s := 7 if headers.x == \"1\"", name, value, name),
			fmt.Sprintf("%s := data.%s.below.o", name, of()),
			fmt.Sprintf("%s := object.get(data.figures, headers.team, 0)", name),
			fmt.Sprintf("%s := data.figures.%s", name, of()),
		}
		if r.IntN(60) == 0 {
			rules = []string{fmt.Sprintf("%s := data[headers.team].o", name), fmt.Sprintf("%s := rego.metadata.rule()", name)}
		}
		text += rules[r.IntN(len(rules))] + "\n"
	}
	return strings.ReplaceAll(text, "headers.", "input.attributes.request.http.headers.")
}

// reloadedQuery is the module that is asked.
func reloadedQuery(r *rand.Rand, n int) string {
	var parts []string
	for range 1 + r.IntN(3) {
		of := fmt.Sprint("data.t", r.IntN(n))
		all := []string{of, of + ".o", of + ".s", of + ".below", of + ".f(3)", of + ".s with " + of + ".s as {7}", "data.figures[h.team]", "data.base"}
		parts = append(parts, "[x | x := "+all[r.IntN(len(all))]+"]")
	}
	return "package p\nh := input.attributes.request.http.headers\nallow := {\"allowed\": true, \"headers\": {\"v\": json.marshal([" + strings.Join(parts, ", ") + "])}}\n"
}

func reloadedData(r *rand.Rand, n int) string {
	figures := make(map[string]int)
	for range 4 {
		figures[fmt.Sprint("t", r.IntN(n))] = r.IntN(10)
	}
	b, _ := json.Marshal(map[string]any{"base": map[string]any{"n": r.IntN(4)}, "figures": figures})
	return string(b)
}

// byOPA is what OPA, which has seen nothing else before, says of requests.
func byOPA(t *testing.T, files map[string]string) (ask func(x, team string) string, err error) {
	t.Helper()
	var data map[string]any
	if err := json.Unmarshal([]byte(files["data.json"]), &data); err != nil {
		t.Fatal(err)
	}
	modules := make(map[string]*ast.Module)
	for name, text := range files {
		if !strings.HasSuffix(name, ".rego") {
			continue
		}
		if modules[name], err = ast.ParseModule(name, text); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
	}
	c := ast.NewCompiler()
	if c.Compile(modules); c.Failed() {
		return nil, c.Errors
	}
	q, err := oparego.New(oparego.Query("data.p.allow.headers.v"), oparego.Store(inmem.NewFromObject(data)), oparego.Compiler(c)).PrepareForEval(t.Context())
	if err != nil {
		return nil, err
	}
	return func(x, team string) string {
		input := map[string]any{"attributes": map[string]any{"request": map[string]any{"http": map[string]any{"headers": map[string]any{"x": x, "team": team}}}}}
		results, err := q.Eval(t.Context(), oparego.EvalInput(input))
		if err != nil || len(results) == 0 {
			return "" // nothing that would allow it
		}
		return fmt.Sprint(results[0].Expressions[0].Value)
	}, nil
}

// After any of many small changes, one after the other, decisions are those of OPA that
// starts with what there is then: of modules that come, change, go and exchange their names,
// of data, and of changes with errors, which change nothing.
func TestReloadsDecideAsOPA(t *testing.T) {
	r := rand.New(rand.NewPCG(50, 1)) //nolint:gosec // a test's
	const n = 40
	revisions := 60
	if proctest.Few() {
		revisions = 15
	}
	host := newBundleHost(t)
	m := newMesh(t)
	m.apply(t, remotePolicy("default/remote", host.URL+"/p.tar.gz"))

	files := map[string]string{"data.json": reloadedData(r, n), "query.rego": "package p\n"}
	for i := range 2 * n { // as many that nothing has to do with
		files[fmt.Sprintf("other%d.rego", i)] = fmt.Sprintf("package other%d\nx := %d\n", i, r.Uint64())
	}
	for i := range n {
		name := fmt.Sprintf("m%d.rego", i)
		files[name] = reloadedModule(r, i, n)
		if _, err := byOPA(t, files); err != nil {
			delete(files, name)
		}
	}
	files["query.rego"] = reloadedQuery(r, n)
	ask, err := byOPA(t, files)
	for err != nil { // a function that nobody has
		files["query.rego"] = reloadedQuery(r, n)
		ask, err = byOPA(t, files)
	}
	serve := func(files map[string]string) {
		host.set(bundletest.Tarball(t, files))
		proctest.Eventually(t, 10*time.Second, func() error { // or what comes next would take its place
			if !host.current() {
				return errors.New("nobody asks for the new bundle")
			}
			return nil
		})
	}
	serve(files)
	wrong, defined := 0, 0
	for revision := range revisions {
		next := maps.Clone(files)
		next[".manifest"] = fmt.Sprintf(`{"revision": "%d"}`, revision)
		var changes []string
		change := func(name, text string) {
			changes = append(changes, name)
			if next[name] = text; text == "" {
				delete(next, name)
			}
		}
		for range 1 + r.IntN(3) {
			i, j := r.IntN(n), r.IntN(n)
			name, other := fmt.Sprintf("m%d.rego", i), fmt.Sprintf("m%d.rego", j)
			switch r.IntN(16) {
			case 0:
				change(name, "")
			case 1:
				change("data.json", reloadedData(r, n))
			case 2:
				change("query.rego", reloadedQuery(r, n))
			case 3:
				a, b := next[name], next[other]
				change(name, b)
				change(other, a)
			default:
				change(name, reloadedModule(r, i, n))
			}
		}
		serve(next)
		now, refused := byOPA(t, next)
		if refused != nil {
			wrong++
		} else {
			files, ask = next, now
		}
		for range 6 {
			x, team := fmt.Sprint(r.IntN(3)), fmt.Sprint("t", r.IntN(6))
			want := ask(x, team)
			proctest.Eventually(t, 10*time.Second, func() error {
				got := ""
				for _, h := range m.check(t, "default/remote", withHeader("x", x), withHeader("team", team)).GetOkResponse().GetHeaders() {
					if h.GetHeader().GetKey() == "v" {
						got = h.GetHeader().GetValue()
					}
				}
				if got != want {
					return fmt.Errorf("revision %d changes %v, refused %v: x %s, team %s: %q, want %q", revision, changes, refused != nil, x, team, got, want)
				}
				return nil
			})
			if want != "" {
				defined++
			}
		}
	}
	t.Logf("of %d revisions %d have errors; %d answers", revisions, wrong, defined)
	if wrong > revisions/2 || defined < 4*revisions {
		t.Error("too few of them say anything")
	}
}
