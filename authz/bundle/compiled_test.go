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
	for _, c := range []struct {
		revision string
		change   func(map[string]string)
		// again: queries reach the change, or OPA would keep what is left out.
		again bool
	}{
		{"r6", func(files map[string]string) { files["team7.rego"] += "# another\n" }, false},
		{"r7", func(files map[string]string) { files["more.rego"] = "package more\n" }, false},
		{"r8", func(files map[string]string) { delete(files, "team7.rego") }, true},
		{"r9", func(files map[string]string) {
			files["policy.rego"] = strings.Replace(files["policy.rego"], "1 %d", "new %d", 1)
		}, true},
		{"r10", func(files map[string]string) { files["team7.rego"] = "package team8\nother if data.team9.allow\n" }, true},
	} {
		files := many(0)
		c.change(files)
		files[".manifest"] = fmt.Sprintf(`{"revision": %q}`, c.revision)
		set(files)
		in(c.revision)
		now := r.Current().compiler
		if c.again == (now.RuleTree == before.RuleTree) {
			t.Errorf("%s: what queries reach was compiled again: %v", c.revision, !c.again)
		}
		want := "1 0"
		if c.revision == "r9" {
			want = "new 0"
		}
		if got := r.ask(t); got != want {
			t.Errorf("%s: decides %q", c.revision, got)
		}
		in, err := rego.NewInput(new(authv3.CheckRequest), rego.InputOptions{})
		if err != nil {
			t.Fatal(err)
		}
		key, ok := r.Current().Program.Key(in)
		if !ok {
			t.Errorf("%s: nothing is kept", c.revision)
		}
		keys[key] = append(keys[key], c.revision)
		before = now
	}
	if len(keys) != 2 { // r9, and those in which other modules have changed
		t.Errorf("the keys of decisions by revision: %v", slices.Collect(maps.Values(keys)))
	}
}

// Of a bundle in which little has changed only what depends on that is compiled, and what is
// wrong with it keeps it out, reached or not.
func TestChangedPartly(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	r := run(t, options(polled(s.URL, "")))
	revision := 0
	set := func(files map[string]string) {
		revision++
		files[".manifest"] = fmt.Sprintf(`{"revision": "r%d"}`, revision)
		s.set("/b.tar.gz", bundletest.Tarball(t, files))
	}
	good := func(files map[string]string, compiled int) {
		t.Helper()
		set(files)
		proctest.Eventually(t, 30*time.Second, func() error {
			if got := r.Current(); got == nil || got.Revisions["b"] != fmt.Sprint("r", revision) {
				return fmt.Errorf("in force is %+v", got)
			}
			return r.report("b").Err
		})
		if n := len(r.Current().compiler.Modules); n != compiled {
			t.Errorf("revision %d: %d modules are kept, want %d", revision, n, compiled)
		}
	}
	with := func(changes map[string]string) map[string]string {
		files := many(0)
		maps.Copy(files, changes)
		return files
	}
	good(many(0), 1)
	first := r.Current().compiler.RuleTree

	good(with(map[string]string{"team7.rego": "package team7\nf(x) := x\n", "team8.rego": "package team8\nx := data.team7.f(1)\n"}), 1)
	for what, c := range map[string]struct {
		changes map[string]string
		err     string
	}{
		"a function that others call is gone": {map[string]string{"team7.rego": "package team7\n", "team8.rego": "package team8\nx := data.team7.f(1)\n"}, "team7.f"},
		"a recursion":                         {map[string]string{"team7.rego": "package team7\nf(x) := data.team8.x\n", "team8.rego": "package team8\nx := data.team7.f(1)\n"}, "recursive"},
		"two defaults":                        {map[string]string{"team7.rego": "package team9\ndefault allow := 1\n", "more.rego": "package team9\ndefault allow := 2\n"}, "multiple default rules"},
		"a rule where others are":             {map[string]string{"more.rego": "package team3\nallow.more := 1\n"}, "allow"},
		"data where a rule is":                {map[string]string{"team7.rego": "package team7\n", "team11/data.json": `{"allow": true}`}, "conflicting rule for data path team11/allow"},
		"data where a new rule is":            {map[string]string{"more.rego": "package settings\nrevision := 1\n"}, "conflicting rule for data path settings/revision"},
		"no Rego":                             {map[string]string{"team7.rego": "package team7\nallow if\n"}, "team7.rego"},
	} {
		set(with(c.changes))
		r.fails(t, "b", c.err)
		if got := r.ask(t); got != "1 0" {
			t.Errorf("%s: decides %q", what, got)
		}
	}
	if r.Current().compiler.RuleTree != first {
		t.Error("what queries reach was compiled again")
	}

	// What queries reach comes to reach more, and then something that changes.
	reaching := strings.Replace(policy(1)["policy.rego"], "1 %d", "reaching %d", 1) + "\nhelp if data.team5.allow\n"
	good(with(map[string]string{"policy.rego": reaching}), 2)
	if got := r.ask(t); got != "reaching 0" {
		t.Errorf("decides %q", got)
	}
	before := r.Current().compiler.RuleTree
	good(with(map[string]string{"policy.rego": reaching, "team6.rego": "package team6\nallow if data.team5.allow\n"}), 2)
	if r.Current().compiler.RuleTree != before {
		t.Error("it was compiled again, though only what queries do not reach depends on the change")
	}
	good(with(map[string]string{"policy.rego": reaching, "team5.rego": "package team5\nallow if data.team4.allow\n"}), 3)
	if r.Current().compiler.RuleTree == before {
		t.Error("it was not compiled again")
	}
	// And what it has come to reach so changes, with nothing new between modules.
	for _, input := range []string{"1", "2"} {
		before = r.Current().compiler.RuleTree
		good(with(map[string]string{
			"policy.rego": reaching, "team5.rego": "package team5\nallow if data.team4.allow\n", "team4.rego": "package team4\nallow if input.team == " + input + "\n",
		}), 3)
		if r.Current().compiler.RuleTree == before {
			t.Error("it was not compiled again")
		}
	}
	good(many(0), 1)
	if got := r.ask(t); got != "1 0" {
		t.Errorf("decides %q", got)
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
