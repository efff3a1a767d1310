package meshdir

import (
	"fmt"
	"testing"
)

// BenchmarkOneChange reads a directory of 1,000 workloads, each with a Service, a
// DestinationRule, an AuthorizationPolicy and a VirtualService in a file of its
// own, after one VirtualService has changed. Nothing is missing in it, so all
// advice is worked out.
func BenchmarkOneChange(b *testing.B) {
	dir := b.TempDir()
	const services = 1000
	change := func(i, timeout int) {
		text := fmt.Sprintf(`apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: s%[1]d, namespace: n%[2]d, labels: {app: s%[1]d, version: v1}}
spec: {command: [sleep, "1"], serviceAccount: s%[1]d, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: s%[1]d, namespace: n%[2]d}
spec: {selector: {app: s%[1]d}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: s%[1]d, namespace: n%[2]d}
spec: {host: s%[1]d, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: s%[1]d, namespace: n%[2]d}
spec:
  selector: {matchLabels: {app: s%[1]d}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/n%[2]d/sa/s%[1]d]}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: s%[1]d, namespace: n%[2]d}
spec:
  hosts: [s%[1]d]
  http: [{timeout: %[3]ds, route: [{destination: {host: s%[1]d, subset: v1}}]}]
`, i, i%10, timeout)
		write(b, dir, fmt.Sprintf("s%d.yaml", i), text)
	}
	for i := range services {
		change(i, 1)
	}
	r := NewReader(Options{Dir: dir})
	if _, _, problems := r.Read(); len(problems) > 0 {
		b.Fatal(problems[0])
	}
	for timeout := 2; b.Loop(); timeout++ {
		change(1, timeout)
		if _, changed, problems := r.Read(); !changed || len(problems) > 0 {
			b.Fatal(changed, problems)
		}
	}
}
