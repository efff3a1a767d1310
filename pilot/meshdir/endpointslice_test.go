package meshdir

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-mesh/writ/pilot/model"
)

// sliceService has no selector: what is behind it is in EndpointSlices.
const sliceService = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: team}\nspec: {ports: [{name: http, port: 80}, {name: tcp-db, port: 3306}]}\n"

// slice writes an EndpointSlice of the Service team/db.
func slice(name, addressType, ports, endpoints string) string {
	return fmt.Sprintf("---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %s, namespace: team, labels: {kubernetes.io/service-name: db}}\naddressType: %s\nports: [%s]\nendpoints: [%s]\n", name, addressType, ports, endpoints)
}

// sliceInstances are workloads at addresses that slices name.
func sliceInstances(t *testing.T) []byte {
	t.Helper()
	replica := func(name, namespace, address string, more InstanceSpec) Instance {
		more.ServiceAccount, more.Address = name+"-account", address
		more.Ports = []InstancePort{{Name: "http", Port: 8000, App: 9000}}
		return Instance{Name: name, Namespace: namespace, Labels: map[string]string{"app": name, "topology.kubernetes.io/zone": "z1"}, Spec: more}
	}
	data, err := MarshalInstances([]Instance{
		replica("own", "team", "127.8.0.1", InstanceSpec{}),
		replica("away", "other", "127.8.0.2", InstanceSpec{}),
		replica("starting", "team", "127.8.0.3", InstanceSpec{Unready: true}),
		replica("pod", "team", "10.8.0.4", InstanceSpec{Interception: "redirect"}),
		replica("edge", "team", "10.8.0.5", InstanceSpec{Type: "gateway"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestEndpointSlices: which endpoints a Service without selector has, and what is
// said of slices that are not used.
func TestEndpointSlices(t *testing.T) {
	const http, both = "{name: http, port: 8080}", "{name: http, port: 8080}, {name: tcp-db, port: 13306}"
	for name, c := range map[string]struct {
		yaml string
		// want has "<address> <port>=<number>...", with the workload behind it and the
		// locality, if there are any.
		want, warned []string
	}{
		"IPv4": {
			slice("a", "IPv4", both, "{addresses: [10.0.0.1]}"), []string{"10.0.0.1 80=8080 3306=13306"}, nil,
		},
		"IPv6, in canonical form": {
			slice("a", "IPv6", both, "{addresses: ['2001:DB8::0:1']}"), []string{"2001:db8::1 80=8080 3306=13306"}, nil,
		},
		"host names": {
			slice("a", "FQDN", both, "{addresses: [db.example.com]}"), nil, []string{"addressType: warning: host names are not used"},
		},
		"every address of an endpoint": {
			slice("a", "IPv4", both, "{addresses: [10.0.0.1, 10.0.0.2]}"), []string{"10.0.0.1 80=8080 3306=13306", "10.0.0.2 80=8080 3306=13306"}, nil,
		},
		"conditions": {
			slice("a", "IPv4", both, `{addresses: [10.0.0.1], conditions: {ready: true}}, {addresses: [10.0.0.2], conditions: {ready: false}},
				{addresses: [10.0.0.3], conditions: {}}, {addresses: [10.0.0.4], conditions: {ready: false, serving: true, terminating: true}},
				{addresses: [10.0.0.5], conditions: {serving: false}}, {addresses: [10.0.0.6], conditions: {ready: true, terminating: true}}`),
			[]string{"10.0.0.1 80=8080 3306=13306", "10.0.0.3 80=8080 3306=13306", "10.0.0.5 80=8080 3306=13306", "10.0.0.6 80=8080 3306=13306"},
			nil,
		},
		"zone": {
			slice("a", "IPv4", both, "{addresses: [10.0.0.1], zone: z2, nodeName: n, hostname: db-0, targetRef: {kind: Pod, name: p}, hints: {forZones: [{name: z2}]}}"),
			[]string{"10.0.0.1 80=8080 3306=13306 in /z2"},
			nil,
		},
		"a workload of the mesh": {
			slice("a", "IPv4", both, "{addresses: [127.8.0.1], zone: z9}"), nil,
			[]string{"endpoints[0].addresses[0]: warning: workload own has no port 8080", "endpoints[0].addresses[0]: warning: workload own has no port 13306"},
		},
		"ports of a workload": {
			slice("a", "IPv4", "{name: http, port: 8000}, {name: tcp-db, port: 9000}", "{addresses: [127.8.0.1]}"), []string{"127.8.0.1 80=8000 3306=8000 own/own-account in /z1"}, nil,
		},
		"a pod": {
			slice("a", "IPv4", both, "{addresses: [10.8.0.4]}"), []string{"10.8.0.4 80=8080 3306=13306 pod/pod-account in /z1"}, nil,
		},
		"a workload that is not up": {
			slice("a", "IPv4", both, "{addresses: [127.8.0.3, 10.0.0.1]}"), []string{"10.0.0.1 80=8080 3306=13306"}, nil,
		},
		"a workload of another namespace": {
			slice("a", "IPv4", both, "{addresses: [127.8.0.2]}"),
			[]string{"127.8.0.2 80=8080 3306=13306"},
			[]string{"endpoints[0].addresses[0]: warning: is workload away of namespace other: as in Istio it is called in plain text"},
		},
		"a gateway": {
			slice("a", "IPv4", both, "{addresses: [10.8.0.5]}"), []string{"10.8.0.5 80=8080 3306=13306"}, nil,
		},
		"several slices": {
			slice("b", "IPv4", http, "{addresses: [10.0.0.2, 10.0.0.1]}") + slice("a", "IPv4", http, "{addresses: [10.0.0.1]}, {addresses: [10.0.0.1]}") +
				slice("c", "IPv6", both, "{addresses: ['2001:db8::1']}"),
			[]string{"10.0.0.1 80=8080", "10.0.0.2 80=8080", "2001:db8::1 80=8080 3306=13306"},
			nil,
		},
		"an address with its ports in two slices": {
			slice("a", "IPv4", http, "{addresses: [10.0.0.1, 10.0.0.2]}") + slice("b", "IPv4", "{name: http, port: 1}, {name: tcp-db, port: 2}", "{addresses: [10.0.0.1, 127.8.0.1]}"),
			[]string{"10.0.0.1 80=8080 3306=2", "10.0.0.2 80=8080"},
			[]string{"no port 1,", "no port 2,"},
		},
		"ready in one of two": {
			slice("a", "IPv4", both, "{addresses: [10.0.0.1], conditions: {ready: false}}") + slice("b", "IPv4", http, "{addresses: [10.0.0.1]}"), []string{"10.0.0.1 80=8080"}, nil,
		},
		"ports that no slice has": {
			slice("a", "IPv4", http, "{addresses: [10.0.0.1]}"), []string{"10.0.0.1 80=8080"}, []string{`spec.ports[1]: warning: no EndpointSlice of the Service has a port named "tcp-db"`},
		},
		"ports that the Service does not have": {
			slice("a", "IPv4", both+", {name: htpt, port: 1}, {port: 2}", "{addresses: [10.0.0.1]}"),
			[]string{"10.0.0.1 80=8080 3306=13306"},
			[]string{`ports[2]: warning: Service team/db has no port named "htpt", so this one is not used, did you mean "http"?`, `ports[3]: warning: Service team/db has no port named ""`},
		},
		"a port without a number": {
			slice("a", "IPv4", "{name: http}, {name: tcp-db, port: 1}", "{addresses: [10.0.0.1]}"),
			[]string{"10.0.0.1 3306=1"},
			[]string{"ports[0]: warning: without a number", `spec.ports[0]: warning: no EndpointSlice of the Service has a port named "http"`},
		},
		"no ports": {
			slice("a", "IPv4", "", "{addresses: [10.0.0.1]}"), nil, []string{"spec.ports[0]: warning: no EndpointSlice", "spec.ports[1]: warning: no EndpointSlice"},
		},
		"no label": {
			strings.Replace(slice("a", "IPv4", both, "{addresses: [10.0.0.1]}"), "kubernetes.io/service-name: db", "", 1), nil, []string{"metadata.labels: warning: without the label kubernetes.io/service-name"},
		},
		"an imported service": {
			strings.Replace(slice("a", "IPv4", both, "{addresses: [10.0.0.1]}"), "labels: {", "labels: {multicluster.kubernetes.io/service-name: db, ", 1), nil, []string{"warning: endpoints of imported services are not used"},
		},
		"no such Service": {
			strings.Replace(slice("a", "IPv4", both, "{addresses: [10.0.0.1]}"), "service-name: db", "service-name: dbs", 1), nil,
			[]string{`metadata.labels[kubernetes.io/service-name]: warning: there is no Service team/dbs, so the endpoints are not used, did you mean "db"?`},
		},
		"another namespace": {
			strings.Replace(slice("a", "IPv4", both, "{addresses: [10.0.0.1]}"), "namespace: team", "namespace: other", 1), nil, []string{"there is no Service other/db"},
		},
		"a Service with a selector": {
			strings.Replace(slice("a", "IPv4", both, "{addresses: [10.0.0.1]}"), "service-name: db", "service-name: own", 1) +
				"---\napiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: team}\nspec: {selector: {app: own}, ports: [{name: http, port: 80, targetPort: 8000}]}\n",
			nil,
			[]string{"warning: Service team/own has a selector, which says what is behind it, so the endpoints are not used"},
		},
		"another name": {
			strings.Replace(slice("a", "IPv4", both, "{addresses: [10.0.0.1]}"), "service-name: db", "service-name: out", 1) +
				"---\napiVersion: v1\nkind: Service\nmetadata: {name: out, namespace: team}\nspec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}\n",
			nil,
			[]string{"warning: Service team/out is another name"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			mesh, problems := Parse(map[string][]byte{"a.yaml": []byte(sliceService + c.yaml)}, sliceInstances(t), Options{})
			var got []string
			for _, e := range mesh.ServiceByHost("db.team.svc.cluster.local", "team").Endpoints {
				got = append(got, endpointText(e))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			warned := slices.Clone(c.warned)
			for _, p := range problems {
				at := slices.IndexFunc(warned, func(w string) bool { return strings.Contains(p.String(), w) })
				switch {
				case at >= 0 && p.Severity == Warning && p.Line > 0:
					warned = slices.Delete(warned, at, at+1)
				case !strings.Contains(p.Message, "is answered 503"): // of other Services
					t.Errorf("said: %s", p)
				}
			}
			for _, w := range warned {
				t.Errorf("not said: %s", w)
			}
		})
	}
}

func endpointText(e *model.Endpoint) string {
	text := e.Address
	for _, port := range []uint32{80, 3306} {
		if to, ok := e.Ports[port]; ok {
			text += fmt.Sprintf(" %d=%d", port, to)
		}
	}
	if e.Proxy != nil {
		text += " " + e.Proxy.Name + "/" + e.ServiceAccount
	}
	if e.Locality != "" {
		text += " in " + e.Locality
	}
	return text
}

// TestEndpointSliceMembers: a workload is of the Service whose slices name it, ready or
// not and whatever the ports, so that roles of the Service hold for it all the time.
func TestEndpointSliceMembers(t *testing.T) {
	mesh, problems := Parse(map[string][]byte{"a.yaml": []byte(sliceService + slice("a", "IPv4", "{name: http, port: 8000}, {name: tcp-db, port: 8000}",
		"{addresses: [127.8.0.1, 127.8.0.2, 10.0.0.1], conditions: {ready: false}}, {addresses: [127.8.0.3, 10.8.0.5]}") + slice("b", "IPv4", "", "{addresses: [10.8.0.4]}"))}, sliceInstances(t), Options{})
	if len(Errors(problems)) > 0 {
		t.Fatal(problems)
	}
	service := mesh.ServiceByHost("db.team.svc.cluster.local", "team")
	want := map[string]bool{"own": true, "starting": true, "pod": true, "away": false, "edge": false}
	for _, p := range mesh.Proxies {
		if got := service.Selects(p); got != want[p.Name] {
			t.Errorf("%s is of the Service: %t", p.Name, got)
		}
		if _, ok := service.PortsOf(p); ok {
			t.Errorf("the ports of %s are known, which is no endpoint", p.Name)
		}
	}
}

// TestEndpointSliceBounds: a slice holds as much as that of Kubernetes.
func TestEndpointSliceBounds(t *testing.T) {
	list := func(n int, form string) string {
		var parts []string
		for i := range n {
			parts = append(parts, strings.ReplaceAll(form, "#", fmt.Sprint(i)))
		}
		return strings.Join(parts, ", ")
	}
	for _, c := range []struct {
		name, yaml, want string
	}{
		{"1000 endpoints", slice("a", "IPv4", "{name: http, port: 80}", list(1000, "{addresses: [10.0.0.1]}")), ""},
		{"1001 endpoints", slice("a", "IPv4", "{name: http, port: 80}", list(1001, "{addresses: [10.0.0.1]}")), "endpoints: 1001 endpoints are too many"},
		{"100 addresses", slice("a", "IPv4", "{name: http, port: 80}", "{addresses: ["+list(100, "10.0.0.#")+"]}"), ""},
		{"101 addresses", slice("a", "IPv4", "{name: http, port: 80}", "{addresses: ["+list(101, "10.0.0.#")+"]}"), "endpoints[0].addresses: 101 addresses are too many"},
		{"100 ports", slice("a", "IPv4", list(100, "{name: p#, port: 80}"), "{addresses: [10.0.0.1]}"), ""},
		{"101 ports", slice("a", "IPv4", list(101, "{name: p#, port: 80}"), "{addresses: [10.0.0.1]}"), "ports: 101 ports are too many"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, problems := Parse(map[string][]byte{"a.yaml": []byte(sliceService + c.yaml)}, nil, Options{})
			errs := Errors(problems)
			if c.want == "" && len(errs) > 0 || c.want != "" && (len(errs) != 1 || !strings.Contains(errs[0].String(), c.want)) {
				t.Error(errs)
			}
		})
	}
}
