package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// TestAttacksOfAuthors: what somebody tries who may write objects of one namespace
// of a mesh that runs.
func TestAttacksOfAuthors(t *testing.T) {
	t.Parallel()
	pay, user, thief := newEcho(t, "pay"), newEcho(t, "user"), newEcho(t, "thief")
	port := proctest.Port(t)
	m := up(t, writeFiles(t, map[string]string{
		"mesh.yaml":      "accessLogFile: /dev/stdout\n",
		"workloads.yaml": workload("pay", "pay", pay) + strings.Replace(workload("user", "user", user), "namespace: default", "namespace: zzz", 1),
		"gateway.yaml":   doorGateway(port, "istio: ingressgateway") + doorTo("pay"),
	}))
	door := m.gateway("door")
	// served says that both clients still reach whom they mean.
	served := func(t *testing.T) {
		t.Helper()
		c := client("")
		defer c.CloseIdleConnections()
		for _, a := range []answer{
			m.get("user-1", "http://pay.default.svc.cluster.local:8000/x"), m.get("user-1", "http://pay.default:8000/x"),
			do(c, request{url: door + "/x"}),
			do(c, request{url: door + "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets", method: http.MethodPost, headers: []string{"content-type: application/grpc", "te: trailers"}}),
		} {
			if a.err != nil || a.header.Get("x-echo") != "pay" {
				t.Errorf("got %s", a)
			}
		}
		if n := thief.count.Load(); n > 0 {
			t.Errorf("%d requests were taken", n)
		}
	}
	served(t)

	live := func(t *testing.T) {
		t.Helper()
		if out, code := m.writ("wait", m.dir); code != 0 {
			t.Fatalf("writ wait: %s", out)
		}
	}
	const entry = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: aaa}\nspec: "
	t.Run("another namespace's host", func(t *testing.T) {
		var entries strings.Builder
		for i, host := range []string{"pay.default.svc.cluster.local", "pay.default.svc", "pay.default", "pay"} {
			entries.WriteString(strings.Replace(entry, "name: e", fmt.Sprintf("name: e%d", i), 1) + fmt.Sprintf("{hosts: [%s], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 8000, name: http, protocol: HTTP}], endpoints: [{address: 127.0.0.1, ports: {http: %d}}]}\n", host, thief.port))
		}
		write(t, m.dir, "aaa/claims.yaml", entries.String())
		live(t)
		served(t)
		if out, code := writ(t, "validate", m.dir); code != 0 || !strings.Contains(out, "is the name of LocalWorkload default/pay") {
			t.Errorf("validate, %d: %s", code, out)
		}
		write(t, m.dir, "aaa/claims.yaml", "")
		live(t)
	})

	sockets := filepath.Dir(strings.TrimPrefix(m.ready.Services["authz"], "unix://"))
	control, _, _ := strings.Cut(m.ready.Services["pilot"], ":")
	for name, spec := range map[string]string{
		"the node agent's socket":   fmt.Sprintf("{hosts: [e.aaa], resolution: STATIC, ports: [{number: 80, name: grpc, protocol: GRPC}], endpoints: [{address: 'unix://%s/nodeagent.sock'}]}", sockets),
		"the authority's socket":    fmt.Sprintf("{hosts: [e.aaa], resolution: STATIC, ports: [{number: 80, name: grpc, protocol: GRPC}], endpoints: [{address: 'unix://%s/ca-admin.sock'}]}", sockets),
		"the state directory":       fmt.Sprintf("{hosts: [e.aaa], resolution: STATIC, ports: [{number: 80, name: grpc, protocol: GRPC}], endpoints: [{address: 'unix://%s/.writ/s'}]}", m.dir),
		"an Envoy's administration": "{hosts: [e.aaa], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: " + m.addressOf("pay-1") + ", ports: {http: 15000}}]}",
		"another's explicit proxy":  "{hosts: [e.aaa], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: " + m.addressOf("pay-1") + ", ports: {http: 15007}}]}",
		"a service of the mesh":     "{hosts: [e.aaa], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: " + control + ", ports: {http: 8443}}]}",
	} {
		t.Run(name, func(t *testing.T) {
			write(t, m.dir, "aaa/door.yaml", entry+spec+`
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: e, namespace: aaa, creationTimestamp: "2001-01-01T00:00:00Z"}
spec:
  hosts: ["*"]
  gateways: [istio-system/door]
  http: [{route: [{destination: {host: e.aaa, port: {number: 80}}}]}]
`)
			out, code := writ(t, "validate", m.dir)
			if code != 1 || !strings.Contains(out, "aaa/door.yaml:5") || !strings.Contains(out, "is reserved") {
				t.Errorf("validate, %d: %s", code, out)
			}
			proctest.Until(t, 20*time.Second, "pilot refuses it", func() bool {
				out, _ := m.writ("status", m.dir)
				return strings.Contains(out, "is reserved")
			})
			served(t)
			write(t, m.dir, "aaa/door.yaml", "")
			live(t)
		})
	}

	t.Run("a service's own key", func(t *testing.T) {
		write(t, m.dir, "aaa/key.yaml", `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: e, namespace: aaa}
spec:
  host: pay.default.svc.cluster.local
  trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: .writ/nodeagent/identity/identity.pem, privateKey: .writ/nodeagent/identity/identity.pem}}
`)
		if out, code := writ(t, "validate", m.dir); code != 1 || !strings.Contains(out, "clientCertificate: the file") {
			t.Errorf("validate, %d: %s", code, out)
		}
		write(t, m.dir, "aaa/key.yaml", "")
		live(t)
	})

	t.Run("a Gateway of the same name", func(t *testing.T) {
		gateway := strings.Replace(doorGateway(proctest.Port(t), "istio: foo"), "namespace: istio-system", "namespace: aaa", 1)
		second, _, _ := strings.Cut(gateway, "---\napiVersion: networking.istio.io/v1\nkind: VirtualService")
		write(t, m.dir, "aaa/gateway.yaml", second)
		live(t)
		served(t)
	})

	t.Run("a path that was not asked for", func(t *testing.T) {
		m.get("user-1", "http://pay.default:8000/true", "x-envoy-original-path: /forged")
		do(client(""), request{url: door + "/true", headers: []string{"x-envoy-original-path: /forged"}})
		for _, name := range []string{"envoy-default-pay-1", "envoy-istio-system-door"} {
			var log string
			proctest.Until(t, 20*time.Second, name+" tells", func() bool {
				data, err := os.ReadFile(filepath.Join(m.dir, ".writ", "logs", name+".log"))
				log = string(data)
				return err == nil && strings.Contains(log, `"/true"`)
			})
			if strings.Contains(log, "/forged") {
				t.Errorf("%s believes the caller", name)
			}
		}
	})
}
