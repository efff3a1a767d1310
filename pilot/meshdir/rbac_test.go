package meshdir

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestRoleAdvice: what is probably not meant of roles, bindings and what says where
// they count, in the words of a golden file.
func TestRoleAdvice(t *testing.T) {
	data, err := os.ReadFile("testdata/roles/advice.yaml")
	if err != nil {
		t.Fatal(err)
	}
	mesh, problems := Parse(map[string][]byte{"a.yaml": data}, nil, Options{})
	var got strings.Builder
	for _, p := range problems {
		fmt.Fprintln(&got, p)
		if p.Severity == Error {
			t.Errorf("an error: %s", p)
		}
	}
	sameAsGolden(t, "testdata/roles/advice.txt", got.String())
	if mesh.RbacConfig == nil || mesh.RbacConfig.Kind != "ClusterRbacConfig" {
		t.Errorf("in force is %+v", mesh.RbacConfig)
	}
}

// TestTwoRbacConfigs: there is one in a mesh, whatever namespaces it is written in.
func TestTwoRbacConfigs(t *testing.T) {
	config := "apiVersion: rbac.istio.io/v1alpha1\nkind: RbacConfig\nmetadata: {name: default, namespace: %s}\nspec: {mode: \"ON\"}\n"
	mesh, problems := Parse(map[string][]byte{"a.yaml": fmt.Appendf(nil, config, "a"), "b.yaml": fmt.Appendf(nil, config, "b")}, nil, Options{})
	if errs := Errors(problems); len(errs) != 1 || !strings.Contains(errs[0].String(), "there is one in the mesh already: RbacConfig a/default (a.yaml:1)") {
		t.Errorf("%v", problems)
	}
	if mesh.RbacConfig == nil || mesh.RbacConfig.Namespace != "a" {
		t.Errorf("in force is %+v", mesh.RbacConfig)
	}
}
