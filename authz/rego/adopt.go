package rego

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"

	"github.com/writ-mesh/writ/authz/basedoc"
)

// Adopt makes a Program of modules that are compiled already and of a store to which
// nobody writes any more: it takes both over and compiles only the query.
func Adopt(ctx context.Context, compiler *ast.Compiler, store *basedoc.Store, query string, o Options) (*Program, error) {
	body, err := parseQuery(query)
	if err != nil {
		return nil, err
	}
	LimitBuiltins()
	if !o.Network {
		for _, b := range compiler.Required.Builtins {
			if slices.Contains(networkBuiltins, b.Name) {
				return nil, fmt.Errorf("%s is not allowed here", b.Name)
			}
		}
	}
	prepared, err := oparego.New(
		oparego.ParsedQuery(body),
		oparego.Compiler(compiler),
		oparego.Store(store),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, oneLine(err)
	}
	return newProgram(ctx, prepared, compiler, store, body, o)
}

func parseQuery(query string) (ast.Body, error) {
	if strings.TrimSpace(query) == "" {
		return nil, errors.New("query: missing")
	}
	body, err := ast.ParseBody(query)
	if err != nil {
		return nil, fmt.Errorf("query %q: %w", query, oneLine(err))
	}
	return body, nil
}

// OneLine makes one line of the lists of errors of Rego and its loader: the
// first and how many more there are.
func OneLine(err error) error { return oneLine(err) }

// CheckQuery says whether a query is one.
func CheckQuery(query string) error {
	_, err := parseQuery(query)
	return err
}
