package translate

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
)

// fuzzInstances are the replicas that FuzzTranslate's configuration is about.
const fuzzInstances = `
apiVersion: local.writ.mesh/v1alpha1
kind: WorkloadInstance
metadata: {name: client-1, labels: {app: client}}
spec: {serviceAccount: client, node: local, address: 127.77.1.1, ports: [{name: http, port: 9000, app: 19000}]}
---
apiVersion: local.writ.mesh/v1alpha1
kind: WorkloadInstance
metadata: {name: reviews-v1-1, labels: {app: reviews, version: v1}}
spec: {serviceAccount: reviews, node: local, address: 127.77.1.2, ports: [{name: http, port: 9080, app: 19080}, {name: tcp-db, port: 9090, app: 19090}]}
---
apiVersion: local.writ.mesh/v1alpha1
kind: WorkloadInstance
metadata: {name: ratings-1, namespace: other, labels: {app: ratings}}
spec: {serviceAccount: ratings, node: local, address: 127.77.1.3, ports: [{name: grpc, port: 8080, app: 18080}]}
---
apiVersion: local.writ.mesh/v1alpha1
kind: WorkloadInstance
metadata: {name: ingress, namespace: istio-system, labels: {istio: ingress}}
spec: {serviceAccount: gateway, node: local, address: 127.77.1.4, type: gateway, gatewayPorts: {80: 8080, 443: 8443}}
`

// FuzzTranslate: what meshdir accepts can be translated for every proxy, to
// messages that keep the bounds Envoy sets for their fields, and again to the
// same bytes.
func FuzzTranslate(f *testing.F) {
	names, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(names) == 0 {
		f.Fatalf("no testdata: %v", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
			f.Add(document)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		mesh, problems := meshdir.Parse(map[string][]byte{"a.yaml": text}, []byte(fuzzInstances), meshdir.Options{Dir: "/mesh"})
		if len(mesh.Proxies) == 0 {
			t.Fatal("no proxies", problems)
		}
		first, second := snapshots(t, mesh), snapshots(t, mesh)
		for id, s := range first {
			for i, r := range s {
				if v, ok := r.Message.(interface{ ValidateAll() error }); !ok {
					t.Errorf("%s: %s: %T cannot be validated", id, r.Name, r.Message)
				} else if err := v.ValidateAll(); err != nil {
					t.Errorf("%s: %s: %v", id, r.Name, err)
				}
				if again := second[id][i]; again.Name != r.Name || !proto.Equal(again.Message, r.Message) {
					t.Errorf("%s: %s is another one the second time", id, r.Name)
				}
			}
		}
	})
}

// snapshots gives the resources of every proxy.
func snapshots(t *testing.T, mesh *model.Mesh) map[string][]Resource {
	t.Helper()
	policy, err := security.New(mesh)
	if err != nil {
		t.Fatal(err)
	}
	translator, err := New(mesh, policy)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]Resource{}
	for _, p := range mesh.Proxies {
		s, err := translator.Proxy(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, list := range [][]Resource{s.Clusters, s.Endpoints, s.Listeners, s.Routes, s.Extensions} {
			out[p.ID] = append(out[p.ID], list...)
		}
	}
	return out
}
