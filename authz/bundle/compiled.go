package bundle

import (
	"context"
	"encoding/json"
	"maps"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/authz/unpack"
)

// compiled is what an activation has compiled, and of what. It is in force only if OPA
// has the compiler: the transaction may have failed after all.
type compiled struct {
	compiler *ast.Compiler
	// digests are of the bundles whose modules can be compared, by name.
	digests map[string]unpack.Digest
	// parsed are the modules that the compiler has left.
	parsed map[string]*ast.Module
	// rules are where rules are, by module; nil if that cannot be kept.
	rules map[string]rego.Paths
	// parts are all modules, by the names of their files, if they are of one bundle; nil
	// if they cannot be compiled in part.
	parts  map[string]part
	around unpack.Digest
	// linked are those parts; nil until it is needed.
	linked *rego.Linked
	// slim says that modules were let go of.
	slim bool
}

// again activates a bundle, which has come without its modules, with those in force. It
// is false if its data are where a rule is.
func (m *Manager) again(o *opabundle.ActivateOpts, activate func() error) (bool, error) {
	was := m.compiled
	if err := m.beyondModules(o, activate); err != nil {
		return true, err
	}
	if free, err := pathsAreFree(o, was.rules); err != nil || !free {
		return false, err
	}
	next := *was
	*o.Compiler = *was.compiler // it is not used to compile again
	next.compiler = o.Compiler
	m.compiled = &next
	return true, nil
}

// beyondModules activates bundles that have come without modules that are in force, which
// stay.
func (m *Manager) beyondModules(o *opabundle.ActivateOpts, activate func() error) error {
	for _, b := range o.Bundles {
		if len(b.Raw) == 0 {
			b.Data = make(map[string]any) // OPA takes it from there then
		}
	}
	return m.store.KeepPolicies(o.Txn, activate)
}

// compile activates bundles as OPA does, and lets go of the modules that nothing asks
// for.
func (m *Manager) compile(o *opabundle.ActivateOpts, read map[string]unpack.Modules, activate func() error) error {
	endWith(o.Ctx, o.Compiler)
	if was := m.compiled; was == nil || !was.slim {
		rego.Share(o.Compiler) // else most of it would be in vain: it goes in a moment, as it went last time
	}
	if err := activate(); err != nil {
		return err
	}
	next := &compiled{compiler: o.Compiler, digests: make(map[string]unpack.Digest), rules: rego.RulePaths(o.Compiler)}
	for name, is := range read {
		next.digests[name] = is.Digest
		if b := o.Bundles[name]; len(read) == 1 && len(o.Bundles) == 1 && len(o.Compiler.Modules) == len(b.Modules) {
			next.parts, next.around = partsOf(is, b.Modules), is.Around
		}
	}
	parsed := maps.Clone(o.ExtraModules)
	if parsed == nil {
		parsed = make(map[string]*ast.Module)
	}
	if was := m.compiled; was != nil && was.compiler == m.opa.GetCompiler() {
		for name, d := range was.digests {
			if o.Bundles[name] == nil {
				next.digests[name] = d
			}
		}
		maps.Copy(parsed, was.parsed)
	}
	for name, b := range o.Bundles {
		maps.Copy(parsed, b.ParsedModules(name))
	}
	if asked := m.asked(); asked != nil {
		slim := rego.Slim(o.Compiler, parsed, m.opa.EnablePrintStatements(), asked...)
		next.slim = slim != o.Compiler
		*o.Compiler = *slim
	}
	m.keep(next, parsed)
	return nil
}

// keep takes for compiled what is, and of how it was parsed what may be needed again.
func (m *Manager) keep(next *compiled, parsed map[string]*ast.Module) {
	rego.Trim(next.compiler)
	next.compiler.WithPathConflictsCheck(nil) // which holds the data of this revision
	next.parsed = make(map[string]*ast.Module)
	if len(next.compiler.Modules) <= smallModules {
		for name := range next.compiler.Modules {
			if parsed[name] != nil {
				next.parsed[name] = parsed[name]
			}
		}
	}
	m.compiled = next
}

// pathsAreFree says that there are no data where rules are.
func pathsAreFree(o *opabundle.ActivateOpts, rules map[string]rego.Paths) (bool, error) {
	exists := storage.NonEmpty(o.Ctx, o.Store, o.Txn)
	free, err := true, error(nil)
	for _, of := range rules {
		// Those of a module have most of their path in common, and usually nothing is there.
		around, inside := rego.Path("none"), true
		of.Each(func(path rego.Path) {
			if before := path.Around(); err == nil && free && before != around {
				around = before
				inside, err = exists(before.Names())
			}
			if err == nil && free && inside {
				var there bool
				there, err = exists(path.Names())
				free = !there
			}
		})
	}
	return free, err
}

// endWith ends the work of a compiler between its larger steps when ctx ends.
func endWith(ctx context.Context, c *ast.Compiler) {
	ended := func(*ast.Compiler) *ast.Error {
		if ctx.Err() == nil {
			return nil
		}
		return ast.NewError(ast.CompileErr, nil, "%v", context.Cause(ctx))
	}
	for _, stage := range []ast.StageID{ast.StageResolveRefs, ast.StageRewriteExprTerms, ast.StageSetGraph, ast.StageCheckSafetyRuleBodies, ast.StageCheckTypes} {
		c.WithStageAfterID(stage, ast.CompilerStageDefinition{Name: "writ", MetricName: "writ", Stage: ended})
	}
}

// asked are the queries that are asked of what is in force: ours, and those of OPA's log
// of decisions. It is nil if they may be others later.
func (m *Manager) asked() []ast.Body {
	query := m.query.Load()
	if query == nil || m.discovers {
		return nil
	}
	texts := []string{*query, "data.system"}
	var logs struct {
		Mask string `json:"mask_decision"`
		Drop string `json:"drop_decision"`
	}
	if raw := m.opa.GetConfig().DecisionLogs; len(raw) > 0 {
		if json.Unmarshal(raw, &logs) != nil {
			return nil
		}
	}
	for _, path := range []string{logs.Mask, logs.Drop} {
		if path != "" {
			texts = append(texts, rego.QueryOfPath(path))
		}
	}
	out := make([]ast.Body, 0, len(texts))
	for _, text := range texts {
		body, err := ast.ParseBody(text)
		if err != nil {
			return nil
		}
		out = append(out, body)
	}
	return out
}
