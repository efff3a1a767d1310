package bundle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-mesh/writ/authz/bundletest"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/proctest"
)

// many is a policy with modules beside it that nothing asks for, and data.
func many(revision int) map[string]string {
	files := policy(1)
	files[".manifest"] = fmt.Sprintf(`{"revision": "r%d"}`, revision)
	files["data.json"] = fmt.Sprintf(`{"settings": {"revision": %d}}`, revision)
	for i := range 40 {
		files[fmt.Sprintf("team%d.rego", i)] = fmt.Sprintf("package team%d\nallow if input.team == \"a team whose name takes some room in a bundle, number %d\"\n", i, i)
	}
	return files
}

// Modules that did not change are not compiled again, alone or beside a bundle that did;
// what decides has only those that it asks for. What OPA would refuse is refused, and
// modules that changed are compiled.
func TestUnchanged(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	r := run(t, options(polled(s.URL, "")))
	set := func(files map[string]string) { s.set("/b.tar.gz", bundletest.Tarball(t, files)) }
	in := func(revision string) {
		t.Helper()
		proctest.Eventually(t, 30*time.Second, func() error {
			if got := r.Current(); got == nil || got.Revisions["b"] != revision {
				return fmt.Errorf("in force is %+v", got)
			}
			return r.report("b").Err
		})
	}
	set(many(1))
	r.decides(t, "1 1")
	first := r.Current().compiler
	if len(first.Modules) != 1 {
		t.Errorf("%d modules are kept", len(first.Modules))
	}
	set(many(2))
	r.decides(t, "1 2")
	in("r2")
	if now := r.Current().compiler; now == first || now.RuleTree != first.RuleTree {
		t.Error("it was compiled again, or nothing happened")
	}

	conflict := many(3)
	conflict["team7/data.json"] = `{"allow": true}`
	set(conflict)
	r.fails(t, "b", "conflicting rule for data path team7/allow")
	if got := r.ask(t); got != "1 2" {
		t.Errorf("decides %q", got)
	}
	set(many(4))
	r.decides(t, "1 4")
	in("r4")

	broken := many(5)
	broken["team7.rego"] = "package team7\nallow if data.team8.nothing(1)\n"
	set(broken)
	r.fails(t, "b", "team8.nothing")
	before := r.Current().compiler
	keys := make(map[rego.Key][]string)
	for revision, change := range map[string]func(map[string]string){
		"r6": func(files map[string]string) { files["team7.rego"] += "# another\n" },
		"r7": func(files map[string]string) { files["more.rego"] = "package more\n" },
		"r8": func(files map[string]string) { delete(files, "team7.rego") },
		"r9": func(files map[string]string) {
			files["policy.rego"] = strings.Replace(files["policy.rego"], "1 %d", "new %d", 1)
		},
	} {
		files := many(0)
		change(files)
		files[".manifest"] = fmt.Sprintf(`{"revision": %q}`, revision)
		set(files)
		in(revision)
		now := r.Current().compiler
		if now.RuleTree == before.RuleTree {
			t.Errorf("%s: it was not compiled again", revision)
		}
		want := "1 0"
		if revision == "r9" {
			want = "new 0"
		}
		if got := r.ask(t); got != want {
			t.Errorf("%s: decides %q", revision, got)
		}
		in, err := rego.NewInput(new(authv3.CheckRequest), rego.InputOptions{})
		if err != nil {
			t.Fatal(err)
		}
		key, ok := r.Current().Program.Key(in)
		if !ok {
			t.Errorf("%s: nothing is kept", revision)
		}
		keys[key] = append(keys[key], revision)
		before = now
	}
	if len(keys) != 2 { // r9, and those in which other modules have changed
		t.Errorf("the keys of decisions by revision: %v", slices.Collect(maps.Values(keys)))
	}
}

// Modules of one bundle stay compiled while another one brings new data, and are compiled
// together with modules that another one brings.
func TestUnchangedBeside(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	rules := many(1)
	rules[".manifest"] = `{"revision": "r1", "roots": ["envoy", "team0", "team1"]}`
	maps.DeleteFunc(rules, func(name, _ string) bool {
		return strings.HasPrefix(name, "team") && name != "team0.rego" && name != "team1.rego" || name == "data.json"
	})
	for i := range 30 {
		rules[fmt.Sprintf("more%d.rego", i)] = fmt.Sprintf("package team0.more%d\nx := %d\n", i, i)
	}
	figures := func(n int, module string) {
		files := map[string]string{".manifest": `{"roots": ["settings", "extra"]}`, "data.json": fmt.Sprintf(`{"settings": {"revision": %d}}`, n)}
		if module != "" {
			files["extra.rego"] = module
		}
		s.set("/figures.tar.gz", bundletest.Tarball(t, files))
	}
	const polling = `"polling": {"min_delay_seconds": 0, "max_delay_seconds": 1, "long_polling_timeout_seconds": 20}`
	s.set("/rules.tar.gz", bundletest.Tarball(t, rules))
	figures(1, "")
	r := run(t, options(fmt.Sprintf(`{"services": {"s": {"url": %q}}, "bundles": {
		"rules": {"service": "s", "resource": "rules.tar.gz", %[2]s}, "figures": {"service": "s", "resource": "figures.tar.gz", %[2]s}}}`, s.URL, polling)))
	r.decides(t, "1 1")
	r.ready(t)
	figures(2, "") // after which both have been activated beside the other
	r.decides(t, "1 2")
	first := r.Current().compiler
	if len(first.Modules) != 1 {
		t.Errorf("%d modules are kept", len(first.Modules))
	}
	figures(3, "")
	r.decides(t, "1 3")
	if r.Current().compiler.RuleTree != first.RuleTree {
		t.Error("the rules were compiled again")
	}
	figures(4, "package extra\ny := data.team0.more1.x\n")
	r.decides(t, "1 4")
	if r.Current().compiler.RuleTree == first.RuleTree {
		t.Error("it was not compiled again")
	}
	rules["policy.rego"] = "package envoy.authz\nallow := {\"allowed\": true, \"reason\": sprintf(\"%d %d\", [data.extra.y, data.settings.revision])}\n"
	s.set("/rules.tar.gz", bundletest.Tarball(t, rules))
	r.decides(t, "1 4")
	proctest.Eventually(t, 30*time.Second, func() error {
		if n := len(r.Current().compiler.Modules); n == 1 {
			return fmt.Errorf("%d modules", n)
		}
		return nil
	})
	figures(5, "package extra\ny := data.team0.more2.x\n")
	r.decides(t, "2 5")
}

// Compiling ends when nobody waits for it any more.
func TestCompilingEnds(t *testing.T) {
	parsed := map[string]*ast.Module{"a.rego": ast.MustParseModule("package a\nallow if input.x")}
	for _, end := range []bool{false, true} {
		ctx, cancel := context.WithCancelCause(t.Context())
		if end {
			cancel(errors.New("it is over"))
		}
		c := ast.NewCompiler()
		endWith(ctx, c)
		c.Compile(parsed)
		cancel(nil)
		if c.Failed() != end || end && !strings.Contains(c.Errors.Error(), "it is over") || end == (c.Graph != nil) {
			t.Errorf("ended %v: %v", end, c.Errors)
		}
	}
}
