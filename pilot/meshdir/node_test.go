package meshdir

import (
	"fmt"
	"strings"
	"testing"
)

// TestNodes: workloads, and endpoints of EndpointSlices, are where their node is unless
// they say so themselves.
func TestNodes(t *testing.T) {
	node := func(name, labels string) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Node\nmetadata: {name: %s, labels: {%s}}\nspec: {podCIDR: 10.0.0.0/24}\nstatus: {capacity: {cpu: '2'}}\n", name, labels)
	}
	nodes := node("n1", "topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1, topology.istio.io/subzone: s1") +
		node("n2", "failure-domain.beta.kubernetes.io/region: r2, failure-domain.beta.kubernetes.io/zone: z2") +
		node("n3", "topology.kubernetes.io/region: r3, failure-domain.beta.kubernetes.io/region: r2, istio-locality: a.b.c")
	var instances []Instance
	for i, node := range []string{"n1", "n2", "n3", "unknown", "n1", "n1"} {
		in := Instance{Name: fmt.Sprintf("w-%d", i), Namespace: "team", Labels: map[string]string{"app": "w"}, Spec: InstanceSpec{
			Node: node, Address: fmt.Sprintf("127.8.0.%d", i), Ports: []InstancePort{{Name: "http", Port: 80}},
		}}
		switch i {
		case 4:
			in.Labels["topology.kubernetes.io/zone"] = "own"
		case 5:
			in.Labels["istio-locality"] = "a.b.c"
		}
		instances = append(instances, in)
	}
	data, err := MarshalInstances(instances)
	if err != nil {
		t.Fatal(err)
	}
	mesh, problems := Parse(map[string][]byte{"a.yaml": []byte(nodes + "---\n" + sliceService + slice("a", "IPv4", "{name: http, port: 80}, {name: tcp-db, port: 1}",
		"{addresses: [10.0.0.1], nodeName: n1, zone: z9}, {addresses: [10.0.0.2], nodeName: unknown, zone: z9}, {addresses: [10.0.0.3], nodeName: n2}"))}, data, Options{})
	if len(problems) > 0 {
		t.Error(problems)
	}
	for host, want := range map[string]string{"w": "r1/z1/s1 r2/z2 r3  /own a/b/c", "db": "r1/z1/s1 /z9 r2/z2"} {
		var got []string
		for _, e := range mesh.ServiceByHost(host+".team.svc.cluster.local", "team").Endpoints {
			got = append(got, e.Locality)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
	_, problems = Parse(map[string][]byte{"a.yaml": []byte(node("n", "a: b"))}, nil, Options{})
	if len(problems) != 1 || !strings.Contains(problems[0].String(), "a.yaml:4: Node n: metadata.labels: warning: nothing is read of a Node but where it is") {
		t.Errorf("a Node without labels: %v", problems)
	}
}
