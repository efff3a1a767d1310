package basedoc

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
)

// A large value is in memory once, whichever of the values around it is asked for too,
// and in whatever order.
func TestLargeValuesAreParts(t *testing.T) {
	leaf := strings.Repeat(`"`+strings.Repeat("x", 1<<10)+`", `, keptBytes/4>>10+1)
	text := `{"a": {"few": [1, {"b": {"c": [` + leaf + `0]}, "small": 2}], "z": 3}, "other": [` + leaf + `1]}`
	var plain any
	if err := json.Unmarshal([]byte(text), &plain); err != nil {
		t.Fatal(err)
	}
	paths := []string{"/a", "/a/few", "/a/few/1", "/a/few/1/b", "/a/few/1/b/c"}
	for _, order := range [][]int{{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {2, 4, 0, 3, 1}} {
		doc, err := parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		root := value{doc: doc}
		for _, i := range order {
			root.find(storage.MustParsePath(paths[i])).ast()
		}
		var got []ast.Value
		for _, p := range paths {
			got = append(got, root.find(storage.MustParsePath(p)).ast())
		}
		b := got[0].(ast.Object).Get(ast.StringTerm("few")).Value.(*ast.Array).Elem(1).Value.(ast.Object).Get(ast.StringTerm("b")).Value //nolint:forcetypeassert // as in the text
		for name, same := range map[string]bool{
			"few": got[0].(ast.Object).Get(ast.StringTerm("few")).Value == got[1], //nolint:forcetypeassert // as in the text
			"b":   b == got[3],
			"c":   b.(ast.Object).Get(ast.StringTerm("c")).Value == got[4], //nolint:forcetypeassert // as in the text
		} {
			if !same {
				t.Errorf("order %v: %s is in memory twice", order, name)
			}
		}
		for i, v := range got {
			want := ast.MustInterfaceToValue(plain.(map[string]any)["a"]) //nolint:forcetypeassert // as in the text
			found, err := want.Find(ast.MustParseRef("data" + refOf(paths[i]))[1:])
			if i == 0 {
				found, err = want, nil
			}
			if err != nil || v.Compare(found) != 0 {
				t.Errorf("order %v: %s is another value, error %v", order, paths[i], err)
			}
		}
		if other := root.find(storage.MustParsePath("/other")).ast(); other.Compare(ast.MustInterfaceToValue(plain.(map[string]any)["other"])) != 0 { //nolint:forcetypeassert // as in the text
			t.Error("what is in none of them is another value")
		}
	}
}

// refOf is a path below /a as Rego has it.
func refOf(path string) string {
	var b strings.Builder
	for _, part := range strings.Split(path, "/")[2:] {
		if part == "1" {
			b.WriteString("[1]")
		} else {
			fmt.Fprintf(&b, "[%q]", part)
		}
	}
	return b.String()
}
