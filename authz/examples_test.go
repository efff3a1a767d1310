package authz

import (
	"context"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/tester"
)

// The tests that stand beside policies in the examples, as `opa test` runs them.
func TestPoliciesOfTheExamples(t *testing.T) {
	folders := make(map[string]bool)
	err := filepath.WalkDir("../examples", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, "_test.rego") {
			folders[filepath.Dir(path)] = true
		}
		return err
	})
	if err != nil || len(folders) == 0 {
		t.Fatalf("%d folders with tests: %v", len(folders), err)
	}
	for folder := range folders {
		modules, store, err := tester.LoadWithRegoVersion([]string{folder}, onlyRego, ast.RegoV1)
		if err != nil {
			t.Fatal(err)
		}
		txn, err := store.NewTransaction(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		results, err := tester.NewRunner().SetStore(store).SetModules(modules).RunTests(context.Background(), txn)
		if err != nil {
			t.Fatalf("%s: %v", folder, err)
		}
		n := 0
		for r := range results {
			n++
			if !r.Pass() {
				t.Errorf("%s: %s", folder, r)
			}
		}
		store.Abort(t.Context(), txn)
		if n == 0 {
			t.Errorf("%s: no test ran", folder)
		}
	}
}

// onlyRego leaves out what is no policy.
func onlyRego(_ string, info fs.FileInfo, _ int) bool {
	return !info.IsDir() && !strings.HasSuffix(info.Name(), ".rego")
}
