package translate

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestGatewayRoutesOutliveACertificate: the certificate of a server is renewed often, and
// connections that are open then drain with routes that go on to hear of edits. What is
// demanded of clients is what rules rely on.
func TestGatewayRoutesOutliveACertificate(t *testing.T) {
	ca := pkitest.NewRoot(t, "cluster.local")
	names := func(mode string) (listener Resource, route string) {
		b := newMesh(t)
		gw := b.gateway("ingress", map[string]string{"istio": "ingress"})
		b.apply(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: istio-system}
spec:
  selector: {istio: ingress}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [secure.example]
    tls: {mode: ` + mode + `, credentialName: secure}
`)
		cert, key := ca.Issue(t, server("secure.example"))
		b.mesh.Secrets["istio-system/secure"] = &model.Secret{Cert: cert, Key: key, CA: ca.PEM()}
		s := b.snapshot(gw)
		if len(s.Listeners) != 1 || len(s.Routes) != 1 {
			t.Fatalf("%d listeners, %d routes", len(s.Listeners), len(s.Routes))
		}
		return s.Listeners[0], s.Routes[0].Name
	}
	first, before := names("SIMPLE")
	second, after := names("SIMPLE")
	if proto.Equal(first.Message, second.Message) {
		t.Error("the listener has the certificate of before")
	}
	if before != after {
		t.Errorf("routes are %q after a renewal, and were %q", after, before)
	}
	if _, mutual := names("MUTUAL"); mutual == before {
		t.Errorf("routes are %q with and without certificates of clients", mutual)
	}
}
