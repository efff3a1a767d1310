package security

import (
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

func TestServerMode(t *testing.T) {
	pa := func(namespace, name, spec string) string {
		return "kind: PeerAuthentication\nmetadata: {namespace: " + namespace + ", name: " + name + "}\nspec: " + spec
	}
	const selector = "selector: {matchLabels: {app: httpbin}}, "
	cases := []struct {
		name string
		docs string
		want model.PeerMode
	}{
		{"nothing", "", model.Permissive},
		{"mesh", pa("istio-system", "a", "{mtls: {mode: STRICT}}"), model.Strict},
		{"mesh unset", pa("istio-system", "a", "{mtls: {mode: UNSET}}"), model.Permissive},
		{"namespace", pa("default", "a", "{mtls: {mode: DISABLE}}"), model.Disable},
		{"another namespace", pa("other", "a", "{mtls: {mode: STRICT}}"), model.Permissive},
		{"namespace over mesh", documents(pa("istio-system", "a", "{mtls: {mode: STRICT}}"), pa("default", "a", "{mtls: {mode: PERMISSIVE}}")), model.Permissive},
		{"namespace inherits", documents(pa("istio-system", "a", "{mtls: {mode: STRICT}}"), pa("default", "a", "{}")), model.Strict},
		{"workload over namespace", documents(pa("default", "a", "{mtls: {mode: STRICT}}"), pa("default", "b", "{"+selector+"mtls: {mode: DISABLE}}")), model.Disable},
		{"workload inherits", documents(pa("default", "a", "{mtls: {mode: STRICT}}"), pa("default", "b", "{"+selector+"mtls: {}}")), model.Strict},
		{"other workload", pa("default", "b", "{selector: {matchLabels: {app: x}}, mtls: {mode: DISABLE}}"), model.Permissive},
		{"port", pa("default", "b", "{"+selector+"mtls: {mode: STRICT}, portLevelMtls: {'8000': {mode: DISABLE}}}"), model.Disable},
		{"other port", pa("default", "b", "{"+selector+"mtls: {mode: STRICT}, portLevelMtls: {'8001': {mode: DISABLE}}}"), model.Strict},
		{"port inherits workload", pa("default", "b", "{"+selector+"mtls: {mode: STRICT}, portLevelMtls: {'8000': {mode: UNSET}}}"), model.Strict},
		{"port inherits namespace", documents(pa("default", "a", "{mtls: {mode: STRICT}}"), pa("default", "b", "{"+selector+"portLevelMtls: {'8000': {}}}")), model.Strict},
		{"port without selector", pa("default", "a", "{mtls: {mode: STRICT}, portLevelMtls: {'8000': {mode: DISABLE}}}"), model.Strict},
		{"first wins in a namespace", documents(pa("default", "a", "{mtls: {mode: STRICT}}"), pa("default", "b", "{mtls: {mode: DISABLE}}")), model.Strict},
		{"first wins for a workload", documents(pa("default", "a", "{"+selector+"mtls: {mode: STRICT}}"), pa("default", "b", "{"+selector+"mtls: {mode: DISABLE}}")), model.Strict},
		{"selector in the root namespace", pa("istio-system", "a", "{"+selector+"mtls: {mode: STRICT}}"), model.Permissive},
	}
	for _, c := range cases {
		w := workload()
		if got := compiler(t, newMesh(t, c.docs)).ServerMode(w.Namespace, w.Labels, 8000); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
