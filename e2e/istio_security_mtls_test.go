package e2e

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/proctest"
)

const peerHead = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"

// TestIstioPeerAuthentication follows
// https://istio.io/latest/docs/reference/config/security/peer_authentication/ and
// the mutual TLS migration task: which mode counts, what a client without a
// sidecar gets, and that clients with one follow by themselves.
func TestIstioPeerAuthentication(t *testing.T) {
	t.Parallel()
	e := newEcho(t, "e")
	tcp := tcpApp(t, "echo")
	http := fmt.Sprintf("http:8000:%d", e.port)
	two := fmt.Sprintf("http-two:8001:%d", newEcho(t, "two").port)
	bytes := fmt.Sprintf("tcp:9000:%d", tcp)
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", e) + workloadIn("default", "free", "app: free", http, bytes) +
			workloadIn("locked", "s", "app: s", http, bytes) + workloadIn("locked", "open", "app: open", http) +
			workloadIn("locked", "ports", "app: ports", http, two) + workloadIn("locked", "unset", "app: unset", http) +
			workloadIn("legacy", "l", "app: l", http, bytes) + workloadIn("legacy", "one", "app: one", http, two),
		"peer.yaml": peerHead + "metadata: {name: default, namespace: locked}\nspec: {mtls: {mode: STRICT}}\n" +
			peerHead + "metadata: {name: open, namespace: locked}\nspec: {selector: {matchLabels: {app: open}}, mtls: {mode: PERMISSIVE}}\n" +
			peerHead + "metadata: {name: ports, namespace: locked}\nspec: {selector: {matchLabels: {app: ports}}, portLevelMtls: {8001: {mode: DISABLE}}}\n" +
			peerHead + "metadata: {name: unset, namespace: locked}\nspec: {selector: {matchLabels: {app: unset}}, mtls: {mode: UNSET}}\n" +
			peerHead + "metadata: {name: default, namespace: legacy}\nspec: {mtls: {mode: DISABLE}}\n" +
			peerHead + "metadata: {name: one, namespace: legacy}\nspec: {selector: {matchLabels: {app: one}}, portLevelMtls: {8000: {mode: STRICT}, 8001: {mode: UNSET}}}\n" +
			// In the root namespace a selector selects nothing.
			peerHead + "metadata: {name: nobody, namespace: istio-system}\nspec: {selector: {matchLabels: {app: free}}, mtls: {mode: STRICT}}\n",
	}))
	cert := m.mint("spiffe://cluster.local/ns/default/sa/a")
	type want struct{ plain, mutual, meshed bool }
	permissive, locked, off := want{true, true, true}, want{false, true, true}, want{true, false, false}
	check := func(t *testing.T, workload, host string, port int, w want) {
		t.Helper()
		target := fmt.Sprintf("%s:%d", m.addressOf(workload+"-1"), port)
		if got := raw("", "GET", "http://"+target+"/"); (got.status == 200) != w.plain {
			t.Errorf("%s port %d, plain text: %s, want accepted %t", workload, port, got, w.plain)
		}
		if got, _ := https(&tls.Config{Certificates: []tls.Certificate{cert}}, "https://"+target+"/"); (got.status == 200) != w.mutual {
			t.Errorf("%s port %d, mutual TLS: %s, want accepted %t", workload, port, got, w.mutual)
		}
		if got, _ := https(&tls.Config{}, "https://"+target+"/"); got.status == 200 {
			t.Errorf("%s port %d, TLS without a certificate: %s", workload, port, got)
		}
		got := m.get("a-1", fmt.Sprintf("http://%s:%d/", host, port))
		if got.status != 200 {
			t.Errorf("%s port %d, from a sidecar: %s", workload, port, got)
			return
		}
		if xfcc := got.saw(t).Headers.Get("x-forwarded-client-cert"); strings.Contains(xfcc, "/sa/a") != w.meshed {
			t.Errorf("%s port %d, from a sidecar: x-forwarded-client-cert is %q, want mutual TLS %t", workload, port, xfcc, w.meshed)
		}
	}
	for _, tc := range []struct {
		name, workload, namespace string
		port                      int
		want                      want
	}{
		{"without a policy both are taken", "free", "default", 8000, permissive},
		{"STRICT namespace", "s", "locked", 8000, locked},
		{"PERMISSIVE workload in it", "open", "locked", 8000, permissive},
		{"its port with DISABLE", "ports", "locked", 8001, off},
		{"its other port", "ports", "locked", 8000, locked},
		{"UNSET workload", "unset", "locked", 8000, locked},
		{"DISABLE namespace", "l", "legacy", 8000, off},
		{"STRICT port in it", "one", "legacy", 8000, locked},
		{"UNSET port in it", "one", "legacy", 8001, off},
	} {
		t.Run(tc.name, func(t *testing.T) { check(t, tc.workload, tc.workload+"."+tc.namespace, tc.port, tc.want) })
	}
	for _, tc := range []struct {
		name, workload, host string
		plain                bool
	}{
		{"TCP, both", "free", "free", true}, {"TCP, STRICT", "s", "s.locked", false}, {"TCP, DISABLE", "l", "l.legacy", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := dialTCP(m.addressOf(tc.workload+"-1") + ":9000"); got != tc.plain {
				t.Errorf("plain: %t", got)
			}
			if !m.connect("a-1", tc.host+":9000") {
				t.Error("from a sidecar: refused")
			}
		})
	}

	plain := func(workload string) func() answer {
		return func() answer { return raw("", "GET", "http://"+m.addressOf(workload+"-1")+":8000/") }
	}
	meshed := func(host string) func() answer {
		return func() answer { return m.get("a-1", "http://"+host+":8000/") }
	}
	rule := func(mode string) string {
		return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: s.locked.svc.cluster.local, trafficPolicy: {tls: {mode: " + mode + "}}}\n"
	}
	t.Run("the whole mesh STRICT", func(t *testing.T) {
		write(t, m.dir, "mesh-wide.yaml", peerHead+"metadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n")
		waitStatus(t, 0, plain("free"))
		waitStatus(t, 200, meshed("free"))
		waitStatus(t, 200, plain("l")) // its namespace says DISABLE
	})
	t.Run("UNSET for the whole mesh is PERMISSIVE", func(t *testing.T) {
		write(t, m.dir, "mesh-wide.yaml", peerHead+"metadata: {name: default, namespace: istio-system}\nspec: {mtls: {}}\n")
		waitStatus(t, 200, plain("free"))
		waitStatus(t, 0, plain("s"))
	})
	t.Run("the whole mesh DISABLE", func(t *testing.T) {
		write(t, m.dir, "mesh-wide.yaml", peerHead+"metadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: DISABLE}}\n")
		proctest.Eventually(t, 5e9, func() error {
			got := meshed("free")()
			if got.status != 200 || got.saw(t).Headers.Get("x-forwarded-client-cert") != "" {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
		waitStatus(t, 200, meshed("s.locked"))
	})
	t.Run("a DestinationRule against the server's mode", func(t *testing.T) {
		write(t, m.dir, "rule.yaml", rule("DISABLE"))
		waitStatus(t, 503, meshed("s.locked"))
		write(t, m.dir, "rule.yaml", rule("ISTIO_MUTUAL"))
		waitStatus(t, 200, meshed("s.locked"))
	})
}

// TestIstioTrustDomainMigration follows the task of that name: principals of the
// old trust domain go on to hold when the mesh moves to a new one with the old as
// its alias.
func TestIstioTrustDomainMigration(t *testing.T) {
	t.Parallel()
	e := newEcho(t, "e")
	dir := writeFiles(t, map[string]string{
		"mesh.yaml":      "trustDomain: new-td\ntrustDomainAliases: [old-td]\n",
		"workloads.yaml": workload("a", "a", e) + workload("b", "b", e) + workload("srv", "srv", e),
		"policy.yaml":    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: old}\nspec: {selector: {matchLabels: {app: srv}}, rules: [{from: [{source: {principals: [old-td/ns/default/sa/a]}}]}]}\n",
	})
	m := up(t, dir)
	if got := m.get("a-1", "http://srv:8000/"); got.status != 200 || !strings.Contains(got.saw(t).Headers.Get("x-forwarded-client-cert"), "spiffe://new-td/ns/default/sa/a") {
		t.Errorf("a by its old name: %s", got)
	}
	if got := m.get("b-1", "http://srv:8000/"); got.status != 403 {
		t.Errorf("b: %s", got)
	}
	target := "https://" + m.addressOf("srv-1") + ":8000/"
	for id, want := range map[string]int{"spiffe://new-td/ns/default/sa/a": 200, "spiffe://new-td/ns/default/sa/b": 403} {
		cert := m.mint(id)
		if got, _ := https(&tls.Config{Certificates: []tls.Certificate{cert}}, target); got.status != want {
			t.Errorf("%s: %s, want %d", id, got, want)
		}
	}
	for principal, want := range map[string]int{"cluster.local/ns/default/sa/a": 200, "new-td/ns/default/sa/a": 200, "third-td/ns/default/sa/a": 403, "*/ns/default/sa/a": 200, "*-td/ns/default/sa/a": 200} {
		write(t, dir, "policy.yaml", fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: other}\nspec: {selector: {matchLabels: {app: srv}}, rules: [{from: [{source: {principals: [%q]}}], to: [{operation: {paths: [/%x]}}]}]}\n", principal, principal))
		waitStatus(t, 403, func() answer { return m.get("a-1", "http://srv:8000/marker") })
		waitStatus(t, want, func() answer { return m.get("a-1", fmt.Sprintf("http://srv:8000/%x", principal)) })
	}
}
