package pilot

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/xds"
)

// authority is a certificate of a CA as PEM.
func authority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// TestOneProxyThatCannotBeTranslatedFor: it keeps what it has, is named, and the
// others get the change.
func TestOneProxyThatCannotBeTranslatedFor(t *testing.T) {
	const tls = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: tls, namespace: aaa}
spec: {host: one.example, exportTo: ["."], trafficPolicy: {tls: {mode: SIMPLE, credentialName: ca}}}
---
apiVersion: v1
kind: Secret
metadata: {name: ca, namespace: aaa}
stringData: {ca.crt: %s}
`
	mesh := func(route string) *model.Mesh {
		m, problems := meshdir.Parse(map[string][]byte{"one.yaml": []byte(entry("one", "8001")), "tls.yaml": []byte(strings.Replace(tls, "%s", `"`+strings.ReplaceAll(authority(t), "\n", `\n`)+`"`, 1)), "route.yaml": []byte(route)}, nil, meshdir.Options{})
		if errs := meshdir.Errors(problems); len(errs) > 0 {
			t.Fatal(errs)
		}
		for _, namespace := range []string{"aaa", "default"} {
			m.Proxies = append(m.Proxies, &model.Proxy{
				ID: "sidecar~" + namespace, Name: "p", Namespace: namespace, ServiceAccount: "p", Address: netip.MustParseAddr("127.9.9.9"), Interception: model.Explicit,
			})
		}
		return m
	}
	before, err := compile(mesh(routeTo("one", "one")), besides{revoked: new(model.Revoked)}, xds.NewBuilder(), nil)
	if err != nil || len(before.failed) > 0 || len(before.snapshot.Proxies) != 2 {
		t.Fatalf("%v %v", err, before.failed)
	}
	broken := mesh(withTimeout(7))
	clear(broken.Secrets) // what no check has found
	after, err := compile(broken, besides{revoked: new(model.Revoked)}, xds.NewBuilder(before.snapshot), before)
	if err != nil {
		t.Fatal(err)
	}
	if len(after.failed) != 1 || !strings.Contains(after.failed[0], "sidecar~aaa") || !strings.Contains(after.failed[0], "DestinationRule aaa/tls") {
		t.Errorf("reasons %q", after.failed)
	}
	if after.snapshot.Proxies["sidecar~aaa"] != before.snapshot.Proxies["sidecar~aaa"] {
		t.Error("the proxy does not keep what it has")
	}
	if got := after.snapshot.Proxies["sidecar~default"]; got == nil || got == before.snapshot.Proxies["sidecar~default"] {
		t.Error("the other proxy does not get the change")
	}
	alone, err := compile(broken, besides{revoked: new(model.Revoked)}, xds.NewBuilder(), nil)
	if err != nil || alone.snapshot.Proxies["sidecar~aaa"] != nil || alone.snapshot.Proxies["sidecar~default"] == nil {
		t.Errorf("at the start: %v %v", err, alone.snapshot.Proxies)
	}
}

// TestCompileSharesWhatProxiesHaveInCommon: a proxy has exactly what the translator
// gives it, and what several have alike is there once.
func TestCompileSharesWhatProxiesHaveInCommon(t *testing.T) {
	m, problems := meshdir.Parse(map[string][]byte{"one.yaml": []byte(entry("one", "8001")), "two.yaml": []byte(entry("two", "8002")), "route.yaml": []byte(routeTo("one", "two"))}, nil, meshdir.Options{})
	if errs := meshdir.Errors(problems); len(errs) > 0 {
		t.Fatal(errs)
	}
	for i, mode := range []model.Interception{model.Redirect, model.Redirect, model.Explicit} {
		m.Proxies = append(m.Proxies, &model.Proxy{
			ID: fmt.Sprintf("sidecar~%d", i), Name: "p", Namespace: "default", ServiceAccount: "p", Interception: mode,
			Address: netip.AddrFrom4([4]byte{127, 9, 9, byte(i)}), Ports: []model.WorkloadPort{{Name: "http", Protocol: model.HTTP, Port: 9000, App: 9001}},
		})
	}
	c, err := compile(m, besides{revoked: new(model.Revoked)}, xds.NewBuilder(), nil)
	if err != nil || len(c.failed) > 0 {
		t.Fatalf("%v %v", err, c.failed)
	}
	for _, p := range m.Proxies {
		s, err := c.translator.Proxy(p)
		if err != nil {
			t.Fatal(err)
		}
		plain := xds.NewBuilder()
		for _, l := range listsOf(s) {
			resources, err := (&sharing{builder: plain}).resources(l.list)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := c.snapshot.Proxies[p.ID].Set(l.url), plain.Set(l.url, resources); got.Hash != want.Hash || got.Len() != want.Len() {
				t.Errorf("%s %s: %d resources, want %d", p.ID, l.url, got.Len(), want.Len())
			}
		}
	}
	a, b := c.snapshot.Proxies["sidecar~0"], c.snapshot.Proxies["sidecar~1"]
	for _, url := range []string{xds.ClusterType, xds.EndpointType, xds.RouteType} {
		if a.Set(url) != b.Set(url) || a.Set(url).Len() == 0 {
			t.Errorf("%s: two alike proxies do not share their set", url)
		}
	}
}
