package bundle

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

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
	rules  rulePaths
	// slim says that modules were let go of.
	slim bool
}

// unchanged says that what is in force was compiled of the same modules as an activation
// of a bundle would be: each activation that changes those of another makes a compiler.
func (m *Manager) unchanged(o *opabundle.ActivateOpts, name string, d unpack.Digest) bool {
	was := m.compiled
	return was != nil && was.rules != "" && len(o.Bundles) == 1 && was.compiler == m.opa.GetCompiler() && was.digests[name] == d
}

// again activates a bundle, which has come without its modules, with those in force. It
// is false if its data are where a rule is.
func (m *Manager) again(o *opabundle.ActivateOpts, activate func() error) (bool, error) {
	was := m.compiled
	for _, b := range o.Bundles {
		if len(b.Raw) == 0 {
			b.Data = make(map[string]any) // OPA takes it from there then
		}
	}
	if err := m.store.KeepPolicies(o.Txn, activate); err != nil {
		return true, err
	}
	exists := storage.NonEmpty(o.Ctx, o.Store, o.Txn)
	for path := range was.rules.all() {
		if there, err := exists(path); err != nil || there {
			return false, err
		}
	}
	next := *was
	*o.Compiler = *was.compiler // it is not used to compile again
	next.compiler = o.Compiler
	m.compiled = &next
	return true, nil
}

// compile activates bundles as OPA does, and lets go of the modules that nothing asks
// for.
func (m *Manager) compile(o *opabundle.ActivateOpts, digests map[string]unpack.Digest, activate func() error) error {
	endWith(o.Ctx, o.Compiler)
	if was := m.compiled; was == nil || !was.slim {
		rego.Share(o.Compiler) // else most of it would be in vain: it goes in a moment, as it went last time
	}
	if err := activate(); err != nil {
		return err
	}
	next := &compiled{compiler: o.Compiler, digests: digests, rules: pathsOf(o.Compiler)}
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
		if slim := rego.Slim(o.Compiler, parsed, m.opa.EnablePrintStatements(), asked...); slim != o.Compiler {
			*o.Compiler = *slim
			next.slim = true
		}
	}
	rego.Trim(o.Compiler)
	o.Compiler.WithPathConflictsCheck(nil) // which holds the data of this revision
	next.parsed = make(map[string]*ast.Module)
	if len(o.Compiler.Modules) <= smallModules {
		for name := range o.Compiler.Modules {
			if parsed[name] != nil {
				next.parsed[name] = parsed[name]
			}
		}
	}
	m.compiled = next
	return nil
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

// rulePaths are where rules are, as one text: there may be very many. It is empty if one
// cannot be written so.
type rulePaths string

const (
	pathEnd  = "\x01"
	partsEnd = "\x00"
)

func pathsOf(c *ast.Compiler) rulePaths {
	var out strings.Builder
	out.WriteString(pathEnd)
	for _, path := range rego.RulePaths(c) {
		for _, part := range path {
			if strings.ContainsAny(part, pathEnd+partsEnd) {
				return ""
			}
			out.WriteString(part)
			out.WriteString(partsEnd)
		}
		out.WriteString(pathEnd)
	}
	return rulePaths(out.String())
}

// all gives each path.
func (p rulePaths) all() func(func([]string) bool) {
	return func(yield func([]string) bool) {
		for path := range strings.SplitSeq(string(p), pathEnd) {
			if path != "" && !yield(slices.Collect(strings.SplitSeq(strings.TrimSuffix(path, partsEnd), partsEnd))) {
				return
			}
		}
	}
}
