package meshdir

import (
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestObjects: what can be read is listed as it was written, but for what is secret.
func TestObjects(t *testing.T) {
	const file = `apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: s, namespace: b}
spec: {egress: [{hosts: ["*/*"]}]} # all
---
apiVersion: v1
kind: Secret
metadata: {name: k, annotations: {kubectl.kubernetes.io/last-applied-configuration: very secret}}
data: {password: dmVyeSBzZWNyZXQ=}
stringData: {more: very secret}
---
apiVersion: v1
kind: Service
metadata: {name: broken}
spec: {prots: []}
---
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{port: 80}]}
`
	var got []string
	text := ""
	for _, o := range Objects(map[string][]byte{"x.yaml": []byte(file), "checks.yaml": []byte(file), ".hidden.yaml": []byte(file), "m.rego": []byte("package m")}) {
		got = append(got, o.String())
		data, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		text += string(data)
	}
	if want := []string{"Secret default/k (x.yaml:6)", "Service default/a (x.yaml:17)", "Sidecar b/s (x.yaml:1)"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if strings.Contains(text, "very secret") || strings.Contains(text, "dmVy") || strings.Count(text, hidden) != 3 || !strings.Contains(text, "# all") {
		t.Errorf("got\n%s", text)
	}
}
