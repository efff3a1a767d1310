package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// federation are the files with which two meshes federate: a.example and b.example
// over the web, and b.example with c.example too, of which the test has the root.
type federation struct {
	dir     string
	address map[string]string // of the bundle endpoints
	c       *pkitest.Root
}

func newFederation(t *testing.T) *federation {
	t.Helper()
	f := &federation{
		dir: t.TempDir(), c: pkitest.NewRoot(t, "c.example"),
		address: map[string]string{"a.example": proctest.Address(t), "b.example": proctest.Address(t)},
	}
	web := pkitest.NewRoot(t, "")
	leaf := pkitest.Leaf("", time.Hour)
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	cert, key := web.Issue(t, leaf)
	bundle := spiffebundle.New(spiffeid.RequireTrustDomainFromString("c.example"))
	bundle.AddX509Authority(f.c.Cert)
	known, err := bundle.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"web.pem": web.PEM(), "cert.pem": cert, "key.pem": key, "c.json": known} {
		if err := os.WriteFile(filepath.Join(f.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// start starts the mesh of a trust domain that accepts another one.
func (f *federation) start(t *testing.T, own, other string, files map[string]string) *mesh {
	t.Helper()
	authority := filepath.Join(f.dir, own+".yaml")
	text := strings.ReplaceAll(fmt.Sprintf(`
bundle_endpoint: {listen: "%s", profile: https_web, cert_file: DIR/cert.pem, key_file: DIR/key.pem, refresh_hint: 5s}
federates_with:
- {trust_domain: %s, url: "https://%s/", profile: https_web, ca_file: DIR/web.pem}
- {trust_domain: c.example, url: "https://127.0.0.1:1/", profile: https_web, bundle_file: DIR/c.json}
`, f.address[own], other, f.address[other]), "DIR", f.dir)
	if err := os.WriteFile(authority, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	files["mesh.yaml"] = fmt.Sprintf("trustDomain: %s\ncaCertificates: [{trustDomains: [%s, c.example]}]\n", own, other)
	files["mtls.yaml"] = strict
	return start(t, writeFiles(t, files), "--authority", authority)
}

// signedByC is a certificate with names that the third trust domain's authority signed.
func (f *federation) signedByC(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	leaf := pkitest.Leaf("", time.Hour)
	for _, n := range names {
		u, err := url.Parse(n)
		if err != nil {
			t.Fatal(err)
		}
		leaf.URIs = append(leaf.URIs, u)
	}
	return f.c.Pair(t, leaf)
}

// with is a client's TLS configuration that shows a certificate whatever the server
// asks for.
func with(pair tls.Certificate) *tls.Config {
	return &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }}
}

// shopPolicy lets one caller of the other mesh in, and all of a namespace of its own
// to one path.
const shopPolicy = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: shop}
spec:
  selector: {matchLabels: {app: shop}}
  rules:
  - from: [{source: {principals: [a.example/ns/default/sa/caller]}}]
  - from: [{source: {namespaces: [default]}}]
    to: [{operation: {paths: [/ours]}}]
`

// foreignHost is a host elsewhere whose server has to have an identity.
func foreignHost(host, address string, port int, identity string) string {
	return fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[1]s}
spec:
  hosts: [%[1]s]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 8000, name: http, protocol: HTTP}]
  endpoints: [{address: %[2]s, ports: {http: %[3]d}}]
  subjectAltNames: ["%[4]s"]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[1]s}
spec:
  host: %[1]s
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
`, host, address, port, identity)
}

// serverOfC is a server with a certificate that the third trust domain's authority
// signed; it returns its port.
func (f *federation) serverOfC(t *testing.T, names ...string) int {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{f.signedByC(t, names...)}, ClientAuth: tls.RequireAnyClientCert}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// TestFederation: a workload of one mesh calls one of another mesh through both
// Envoys, each with the roots of its own authority for its own and those of the other
// for the other's.
func TestFederation(t *testing.T) {
	t.Parallel()
	f := newFederation(t)
	a := f.start(t, "a.example", "b.example", map[string]string{
		"workloads.yaml": workload("caller", "caller", newEcho(t, "caller")) + workload("stranger", "stranger", newEcho(t, "stranger")),
	})
	b := f.start(t, "b.example", "a.example", map[string]string{
		"workloads.yaml": workload("shop", "shop", newEcho(t, "shop")) + workload("clerk", "clerk", newEcho(t, "clerk")), "policy.yaml": shopPolicy,
	})
	a.waitReady()
	b.waitReady()
	at := b.addressOf("shop-1")
	const caller, shop, c = "spiffe://a.example/ns/default/sa/caller", "spiffe://b.example/ns/default/sa/shop", "spiffe://c.example/ns/default/sa/caller"
	write(t, a.dir, "shop.yaml", foreignHost("shop.b.example", at, 8000, shop)+foreignHost("wrong.b.example", at, 8000, "spiffe://b.example/ns/default/sa/clerk")+
		foreignHost("c.example", "127.0.0.1", f.serverOfC(t, c), c)+foreignHost("forged.example", "127.0.0.1", f.serverOfC(t, c, shop), shop))

	status := func(m *mesh, replica, target string, want int) {
		t.Helper()
		proctest.Eventually(t, 20*time.Second, func() error {
			if got := m.get(replica, target); got.status != want {
				return fmt.Errorf("%s to %s: %s, want %d", replica, target, got, want)
			}
			return nil
		})
	}
	status(a, "caller-1", "http://shop.b.example:8000/x", http.StatusOK)
	xfcc := a.get("caller-1", "http://shop.b.example:8000/x").saw(t).Headers.Get("x-forwarded-client-cert")
	if !strings.Contains(xfcc, "By=spiffe://b.example/ns/default/sa/shop") || !strings.Contains(xfcc, "URI="+caller) || strings.Contains(xfcc, ",") {
		t.Errorf("the callee sees x-forwarded-client-cert %q", xfcc)
	}
	status(a, "stranger-1", "http://shop.b.example:8000/x", http.StatusForbidden)
	status(b, "clerk-1", "http://shop:8000/ours", http.StatusOK)
	status(a, "stranger-1", "http://shop.b.example:8000/ours", http.StatusForbidden) // of a namespace of that name elsewhere
	status(a, "caller-1", "http://wrong.b.example:8000/x", http.StatusServiceUnavailable)
	status(a, "caller-1", "http://c.example:8000/x", http.StatusOK)
	status(a, "caller-1", "http://forged.example:8000/x", http.StatusServiceUnavailable)

	t.Run("an authority vouches for its own", func(t *testing.T) {
		direct := "https://" + at + ":8000/x"
		if got, _ := https(with(f.signedByC(t, c)), direct); got.status != http.StatusForbidden {
			t.Errorf("%s: %s", c, got)
		}
		for _, names := range [][]string{{caller}, {"spiffe://b.example/ns/default/sa/clerk"}, {c, caller}, {c, "spiffe://b.example/ns/default/sa/clerk"}, {caller, c}} {
			if got, _ := https(with(f.signedByC(t, names...)), direct); got.err == nil {
				t.Errorf("%s signed by c.example: %s", names, got)
			}
		}
	})
	t.Run("a new root of the other", func(t *testing.T) {
		if out, code := a.writ("roots", "rotate", "--force", a.dir); code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		pair := a.mint(caller)
		proctest.Eventually(t, 20*time.Second, func() error {
			got, _ := https(with(pair), "https://"+at+":8000/x")
			if got.status != http.StatusOK {
				return fmt.Errorf("with a certificate of the new root: %s", got)
			}
			return nil
		})
	})
	t.Run("the other is not accepted any more", func(t *testing.T) {
		pair := a.mint(caller)
		write(t, b.dir, "mesh.yaml", "trustDomain: b.example\n")
		proctest.Eventually(t, 20*time.Second, func() error {
			if got, _ := https(with(pair), "https://"+at+":8000/x"); got.err == nil {
				return errors.New("a new connection is made")
			}
			if got := a.get("caller-1", "http://shop.b.example:8000/x"); got.status == http.StatusOK {
				return errors.New("a request passes")
			}
			return nil
		})
		status(b, "clerk-1", "http://shop:8000/ours", http.StatusOK)
	})
}
