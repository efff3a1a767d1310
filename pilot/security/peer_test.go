package security

import "testing"

func TestServerMode(t *testing.T) {
	pa := func(namespace, name, spec string) string {
		return "kind: PeerAuthentication\nmetadata: {namespace: " + namespace + ", name: " + name + "}\nspec: " + spec
	}
	const selector = "selector: {matchLabels: {app: httpbin}}, "
	cases := []struct {
		name string
		docs string
		want Mode
	}{
		{"nothing", "", ModePermissive},
		{"mesh", pa("istio-system", "a", "{mtls: {mode: STRICT}}"), ModeStrict},
		{"mesh unset", pa("istio-system", "a", "{mtls: {mode: UNSET}}"), ModePermissive},
		{"namespace", pa("default", "a", "{mtls: {mode: DISABLE}}"), ModeDisable},
		{"another namespace", pa("other", "a", "{mtls: {mode: STRICT}}"), ModePermissive},
		{"namespace over mesh", documents(pa("istio-system", "a", "{mtls: {mode: STRICT}}"), pa("default", "a", "{mtls: {mode: PERMISSIVE}}")), ModePermissive},
		{"namespace inherits", documents(pa("istio-system", "a", "{mtls: {mode: STRICT}}"), pa("default", "a", "{}")), ModeStrict},
		{"workload over namespace", documents(pa("default", "a", "{mtls: {mode: STRICT}}"), pa("default", "b", "{"+selector+"mtls: {mode: DISABLE}}")), ModeDisable},
		{"workload inherits", documents(pa("default", "a", "{mtls: {mode: STRICT}}"), pa("default", "b", "{"+selector+"mtls: {}}")), ModeStrict},
		{"other workload", pa("default", "b", "{selector: {matchLabels: {app: x}}, mtls: {mode: DISABLE}}"), ModePermissive},
		{"port", pa("default", "b", "{"+selector+"mtls: {mode: STRICT}, portLevelMtls: {'8000': {mode: DISABLE}}}"), ModeDisable},
		{"other port", pa("default", "b", "{"+selector+"mtls: {mode: STRICT}, portLevelMtls: {'8001': {mode: DISABLE}}}"), ModeStrict},
		{"port inherits workload", pa("default", "b", "{"+selector+"mtls: {mode: STRICT}, portLevelMtls: {'8000': {mode: UNSET}}}"), ModeStrict},
		{"port inherits namespace", documents(pa("default", "a", "{mtls: {mode: STRICT}}"), pa("default", "b", "{"+selector+"portLevelMtls: {'8000': {}}}")), ModeStrict},
		{"port without selector", pa("default", "a", "{mtls: {mode: STRICT}, portLevelMtls: {'8000': {mode: DISABLE}}}"), ModeStrict},
		{"first wins in a namespace", documents(pa("default", "a", "{mtls: {mode: STRICT}}"), pa("default", "b", "{mtls: {mode: DISABLE}}")), ModeStrict},
		{"first wins for a workload", documents(pa("default", "a", "{"+selector+"mtls: {mode: STRICT}}"), pa("default", "b", "{"+selector+"mtls: {mode: DISABLE}}")), ModeStrict},
		{"selector in the root namespace", pa("istio-system", "a", "{"+selector+"mtls: {mode: STRICT}}"), ModePermissive},
	}
	for _, c := range cases {
		w := workload()
		if got := compiler(t, newMesh(t, c.docs)).ServerMode(w.Namespace, w.Labels, 8000); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
