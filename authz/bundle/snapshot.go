package bundle

import (
	"context"
	"errors"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/writ-mesh/writ/authz/rego"
)

// take makes a snapshot of what OPA has activated and puts it in force.
func (m *Manager) take(ctx context.Context) error {
	compiler, data, revisions, err := m.copyStore(ctx)
	if err != nil {
		return err
	}
	if old := m.current.Load(); old != nil && old.compiler == compiler {
		return nil
	}
	if m.options.OnlyBundles && len(revisions) == 0 {
		return nil
	}
	program, err := rego.Adopt(ctx, compiler, data, *m.query.Load(), m.options.Rego)
	if err != nil {
		return err
	}
	next := &Snapshot{Program: program, Revisions: revisions, compiler: compiler}
	if m.options.Swapped != nil {
		m.options.Swapped(next)
	}
	m.current.Store(next)
	return nil
}

// copyStore takes the compiler and a copy of the data that belong together: OPA
// sets the compiler while it commits, and nobody commits during a read. The copy
// is deep, because OPA's store changes objects in place.
func (m *Manager) copyStore(ctx context.Context) (*ast.Compiler, ast.Object, map[string]string, error) {
	txn, err := m.store.NewTransaction(ctx)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("opa store: %w", err)
	}
	defer m.store.Abort(ctx, txn)
	compiler := m.opa.GetCompiler()
	if compiler == nil {
		return nil, nil, nil, errors.New("opa has compiled nothing yet")
	}
	all, err := m.store.Read(ctx, txn, storage.RootPath)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("opa store: %w", err)
	}
	data, ok := all.(ast.Object)
	if !ok {
		return nil, nil, nil, fmt.Errorf("opa store: %T instead of an object", all)
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
	return compiler, data.Copy(), revisions, nil
}
