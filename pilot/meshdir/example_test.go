package meshdir_test

import (
	"fmt"

	"github.com/writ-mesh/writ/pilot/meshdir"
)

// What is wrong is left out and told with file, line, object and field; the rest
// is the mesh.
func ExampleParse() {
	mesh, problems := meshdir.Parse(map[string][]byte{
		"shop.yaml": []byte(`
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata:
  name: cart
  labels: {app: cart}
spec:
  ports:
  - {name: http, port: 8080}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: cart
spec:
  hosts: [cart]
  http:
  - route:
    - destination: {host: crat}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: cart
spec:
  rule:
  - {}
`),
	}, nil, meshdir.Options{})
	for _, s := range mesh.Services {
		fmt.Println(s.Hostname)
	}
	for _, p := range problems {
		fmt.Println(p)
	}
	// Output:
	// cart.default.svc.cluster.local
	// shop.yaml:19: VirtualService default/cart: spec.http[0].route[0].destination.host: there is no service crat.default.svc.cluster.local, did you mean "cart.default.svc.cluster.local"?
	// shop.yaml:26: AuthorizationPolicy default/cart: spec.rule: unknown field "rule", did you mean "rules"?
}
