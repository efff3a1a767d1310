package replay

import (
	"bytes"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/writ-mesh/writ/pilot/model"
)

// FuzzEnforce promotes a policy in any file: what comes of it is YAML in which this
// policy enforces, and nothing but one value is another.
func FuzzEnforce(f *testing.F) {
	for _, seed := range []string{
		"kind: RegoPolicy\nmetadata: {name: a}\nspec: {mode: observe, module: x} # note\n", "---\nkind: X\n---\nkind: RegoPolicy\nmetadata: {name: a, namespace: default}\nspec:\n  mode: \"observe\"\n",
		"kind: RegoPolicy\nmetadata: {name: a}\nspec: {mode: &m observe}\n", "kind: RegoPolicy\nmetadata: {name: a}\nspec:\n  mode: |\n    observe\n", "kind: RegoPolicy\nmetadata: {name: \xff}\n", "a: &a [*a]\n", "",
		"kind: RegoPolicy\nmetadata: {name: a}\nspec: {mode: 'obs''erve'}\n", "\ufeffkind: RegoPolicy\nmetadata: {name: a}\nspec: {mode: observe}\n",
	} {
		f.Add([]byte(seed))
	}
	policy := model.Ref{Kind: "RegoPolicy", Namespace: "default", Name: "a", File: "f.yaml"}
	f.Fuzz(func(t *testing.T, text []byte) {
		out, err := Enforce(bytes.Clone(text), policy)
		if err != nil {
			return
		}
		dec := yaml.NewDecoder(bytes.NewReader(out))
		for {
			var doc yaml.Node
			if err := dec.Decode(&doc); err != nil {
				t.Fatalf("%q became %q, in which it is not: %v", text, out, err)
			}
			if len(doc.Content) == 1 && is(doc.Content[0], policy) {
				if mode := child(doc.Content[0], "spec", "mode"); mode == nil || mode.Value != "enforce" {
					t.Errorf("%q became %q", text, out)
				}
				return
			}
		}
	})
}
