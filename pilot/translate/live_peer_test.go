package translate

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/explain"
	"github.com/writ-mesh/writ/pilot/model"
)

// peerCases are the modes of PeerAuthentication by where they are written: mesh,
// namespace, workload and port. The mode of a port is what Istio's documentation says.
const peerPolicies = `
kind: PeerAuthentication
metadata: {name: mesh, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
kind: PeerAuthentication
metadata: {name: selects-nothing, namespace: istio-system}
spec: {selector: {matchLabels: {app: none}}, mtls: {mode: DISABLE}}
---
kind: PeerAuthentication
metadata: {name: soft, namespace: soft}
spec: {mtls: {mode: PERMISSIVE}}
---
kind: PeerAuthentication
metadata: {name: off, namespace: off}
spec: {mtls: {mode: DISABLE}}
---
kind: PeerAuthentication
metadata: {name: unset, namespace: inherits}
spec: {mtls: {mode: UNSET}}
---
kind: PeerAuthentication
metadata: {name: ports, namespace: soft}
spec:
  selector: {matchLabels: {app: ports}}
  mtls: {mode: STRICT}
  portLevelMtls: {9081: {mode: DISABLE}, 9082: {mode: PERMISSIVE}, 9083: {mode: UNSET}}
---
kind: PeerAuthentication
metadata: {name: whole, namespace: off}
spec:
  selector: {matchLabels: {app: whole}}
  mtls: {mode: UNSET}
  portLevelMtls: {9081: {mode: STRICT}, 9082: {mode: PERMISSIVE}}
`

// TestPeerAuthenticationSemantics has a real Envoy and explain meet the same callers,
// with a certificate and in plain text, at every kind of place for a mode.
func TestPeerAuthenticationSemantics(t *testing.T) {
	m := newLive(t, 41)
	client := m.workload("client-1", "default", "client", map[string]string{"app": "client"}, port(t, "http", 9000))
	modes := map[*model.Proxy][4]model.PeerMode{}
	for _, w := range []struct {
		name, namespace string
		modes           [4]model.PeerMode // of the ports 9080 to 9083
	}{
		{"mesh", "default", [4]model.PeerMode{model.Strict, model.Strict, model.Strict, model.Strict}},
		{"plain", "soft", [4]model.PeerMode{model.Permissive, model.Permissive, model.Permissive, model.Permissive}},
		{"ports", "soft", [4]model.PeerMode{model.Strict, model.Disable, model.Permissive, model.Strict}},
		{"whole", "off", [4]model.PeerMode{model.Disable, model.Strict, model.Permissive, model.Disable}},
		{"unset", "inherits", [4]model.PeerMode{model.Strict, model.Strict, model.Strict, model.Strict}},
	} {
		p := m.workload(w.name+"-1", w.namespace, w.name, map[string]string{"app": w.name}, port(t, "http", 9080), port(t, "http-b", 9081), port(t, "http-c", 9082), port(t, "http-d", 9083))
		m.service(w.name, w.namespace, p)
		modes[p] = w.modes
	}
	m.apply(peerPolicies)
	for _, p := range m.mesh.Proxies {
		m.echo(p, nil)
	}
	m.start()
	for p, want := range modes {
		for i, mode := range want {
			number := uint32(9080 + i)
			where := fmt.Sprintf("%s port %d, %s", p.Name, number, mode)
			host := fmt.Sprintf("%s.%s.svc.cluster.local:%d", p.ServiceAccount, p.Namespace, number)
			told := m.explainPeer(t, "client-1", p, number)
			got := m.via(client, http.MethodGet, "http://"+host+"/")
			known := strings.Contains(got.body, "sa/client")
			if got.StatusCode != 200 || known == (mode == model.Disable) {
				t.Errorf("%s: a caller of the mesh gets %s, known %v", where, got.Status, known)
			}
			if told.Decision != explain.Allowed || strings.Contains(told.Steps[0].Detail, "the caller is") != known {
				t.Errorf("%s: explain says %s, %s", where, told.Decision, told.Steps[0].Detail)
			}
			told = m.explainPeer(t, explain.Outside, p, number)
			resp, err := http.Get("http://" + netip.AddrPortFrom(p.Address, uint16(number)).String() + "/")
			passes := err == nil && resp.StatusCode == 200
			if err == nil {
				_ = resp.Body.Close()
			}
			if passes == (mode == model.Strict) {
				t.Errorf("%s: plain text passes: %v", where, passes)
			}
			if (told.Decision == explain.Allowed) != passes {
				t.Errorf("%s: explain says %s of plain text", where, told.Decision)
			}
		}
	}
}

func (m *liveMesh) explainPeer(t *testing.T, from string, to *model.Proxy, port uint32) explain.Target {
	t.Helper()
	a, err := explain.Request(m.mesh, explain.Question{From: from, To: to.Namespace + "/" + to.Name, Port: port}, explain.Deciders{})
	if err != nil {
		t.Fatal(err)
	}
	return a.Targets[0]
}
