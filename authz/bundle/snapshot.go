package bundle

import (
	"context"
	"errors"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/writ-mesh/writ/authz/basedoc"
	"github.com/writ-mesh/writ/authz/rego"
)

// take makes a snapshot of what OPA has activated and puts it in force.
func (m *Manager) take(ctx context.Context) error {
	compiler, data, revisions, err := m.freeze(ctx)
	if err != nil {
		return err
	}
	if old := m.current.Load(); old != nil && old.compiler == compiler {
		return nil
	}
	if m.options.OnlyBundles && len(revisions) == 0 {
		return nil
	}
	var program *rego.Program
	err = m.beside(ctx, len(compiler.Modules) <= smallModules, func() (err error) {
		program, err = rego.Adopt(ctx, compiler, data, *m.query.Load(), m.options.Rego)
		return err
	})
	if err != nil {
		return err
	}
	if old := m.current.Load(); old != nil && m.options.Ahead != nil {
		defer m.options.Ahead(ctx, old.Program, program)()
	}
	next := &Snapshot{Program: program, Revisions: revisions, compiler: compiler}
	if m.options.Swapped != nil {
		m.options.Swapped(next)
	}
	m.current.Store(next)
	return nil
}

// freeze takes the compiler and the data that belong together: OPA sets the compiler
// while it commits, and nobody commits during a read.
func (m *Manager) freeze(ctx context.Context) (*ast.Compiler, *basedoc.Store, map[string]string, error) {
	txn, err := m.store.NewTransaction(ctx)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("opa store: %w", err)
	}
	defer m.store.Abort(ctx, txn)
	compiler := m.opa.GetCompiler()
	if compiler == nil {
		return nil, nil, nil, errors.New("opa has compiled nothing yet")
	}
	data, err := m.store.Frozen(txn)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("opa store: %w", err)
	}
	revisions := make(map[string]string)
	names, err := opabundle.ReadBundleNamesFromStore(ctx, m.store, txn)
	if err != nil && !storage.IsNotFound(err) {
		return nil, nil, nil, fmt.Errorf("opa store: %w", err)
	}
	for _, name := range names {
		r, err := opabundle.ReadBundleRevisionFromStore(ctx, m.store, txn, name)
		if err != nil && !storage.IsNotFound(err) {
			return nil, nil, nil, fmt.Errorf("opa store: %w", err)
		}
		revisions[name] = r
	}
	return compiler, data, revisions, nil
}
