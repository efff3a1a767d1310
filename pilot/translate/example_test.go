package translate_test

import (
	"fmt"
	"strings"

	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/pilot/translate"
)

// The way of a mesh from its files to one sidecar: read, compile the policies,
// index, translate.
func Example() {
	mesh, problems := meshdir.Parse(map[string][]byte{"shop.yaml": []byte(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: only-shop
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from:
    - source: {principals: [cluster.local/ns/default/sa/shop]}
`)}, []byte(`
apiVersion: local.writ.mesh/v1alpha1
kind: WorkloadInstance
metadata:
  name: cart-1
  labels: {app: cart}
spec:
  serviceAccount: cart
  node: local
  address: 127.0.16.2
  ports:
  - {name: http, port: 8080, app: 20001}
`), meshdir.Options{Dir: "/mesh"})
	if refused := meshdir.Errors(problems); len(refused) > 0 { // besides them are warnings
		fmt.Println(refused)
		return
	}
	policies, err := security.New(mesh)
	if err != nil {
		fmt.Println(err)
		return
	}
	translator, err := translate.New(mesh, policies)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, proxy := range mesh.Proxies {
		snapshot, err := translator.Proxy(proxy)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(proxy.ID)
		for _, kind := range []struct {
			name string
			list []translate.Resource
		}{{"cluster", snapshot.Clusters}, {"endpoints", snapshot.Endpoints}, {"listener", snapshot.Listeners}, {"route", snapshot.Routes}, {"extension", snapshot.Extensions}} {
			for _, r := range kind.list {
				// Names of routes end in a digest of the listener that they are for.
				name, _, _ := strings.Cut(r.Name, "~")
				fmt.Println(kind.name, name, r.Sources)
			}
		}
	}
	// Output:
	// sidecar~127.0.16.2~cart-1.default~default.svc.cluster.local
	// cluster PassthroughCluster []
	// cluster inbound|8080||127.0.0.1:20001 [AuthorizationPolicy default/only-shop (shop.yaml:2)]
	// cluster outbound|8080||cart.default.svc.cluster.local [WorkloadInstance default/cart-1 (instances.yaml:2)]
	// endpoints outbound|8080||cart.default.svc.cluster.local [WorkloadInstance default/cart-1 (instances.yaml:2)]
	// listener inbound|8080|| [AuthorizationPolicy default/only-shop (shop.yaml:2)]
	// listener outbound|15007 []
	// route inbound|8080|| [AuthorizationPolicy default/only-shop (shop.yaml:2)]
	// route outbound|15007 [WorkloadInstance default/cart-1 (instances.yaml:2)]
	// extension writ.jwt []
}
