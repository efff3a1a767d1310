package translate

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestLiveTLSDefaults: MeshConfig.tlsDefaults hold for TLS with who is not of the
// mesh, at gateways and towards servers outside, and every name that we let through
// is one that Envoys know.
func TestLiveTLSDefaults(t *testing.T) {
	t.Parallel()
	for i, bin := range envoytest.All(t) {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(bin))), func(t *testing.T) {
			m := newLive(t, byte(60+i))
			m.bin = bin
			client := m.workload("client-1", "default", "client", nil, port(t, "http", 9000))
			m.service("client", "default", client)
			ingress := m.gateway("ingress", map[string]string{"istio": "ingress"})
			cert, key := m.ca.Issue(t, server("secure.example"))
			m.mesh.Secrets["istio-system/secure"] = &model.Secret{Cert: cert, Key: key}
			m.apply(fmt.Sprintf(tlsDefaults, m.outsideTLS("secure.example", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.TLS.CurveID) })))
			m.echo(client, nil)
			m.start()
			for _, c := range []struct {
				name, host string
				config     *tls.Config
				want       string // version, suite and curve, "" for none
			}{
				{"the defaults", "secure.example", &tls.Config{}, "TLS 1.3 CurveP384"},
				{"below the least version", "secure.example", &tls.Config{MaxVersion: tls.VersionTLS12}, ""},
				{"without the curve", "secure.example", &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}, ""},
				{"the server's own version and the default suite", "older.example", &tls.Config{MaxVersion: tls.VersionTLS12}, "TLS 1.2 CurveP384 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"},
				{"the server's own suite", "suite.example", &tls.Config{}, "TLS 1.2 CurveP384 TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"},
				{"every name", "all.example", &tls.Config{MaxVersion: tls.VersionTLS12}, "TLS 1.2 CurveP384 TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"},
			} {
				t.Run(c.name, func(t *testing.T) {
					c.config.RootCAs, c.config.ServerName, c.config.InsecureSkipVerify = m.ca.Pool(), c.host, true
					got := ""
					conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", hostPort(ingress.Address, 8443), c.config)
					if err == nil {
						state := conn.ConnectionState()
						got = fmt.Sprintf("%s %s", tls.VersionName(state.Version), state.CurveID)
						if state.Version == tls.VersionTLS12 {
							got += " " + tls.CipherSuiteName(state.CipherSuite)
						}
						_ = conn.Close()
					}
					if got != c.want {
						t.Errorf("%q, want %q: %v", got, c.want, err)
					}
				})
			}
			t.Run("towards a server outside", func(t *testing.T) {
				if r := m.via(client, http.MethodGet, "http://outside.example/"); r.body != "CurveP384" {
					t.Errorf("%s %s", r.Status, r.body)
				}
			})
		})
	}
}

const tlsDefaults = `
kind: MeshConfig
metadata: {name: mesh}
spec: {tlsDefaults: {minProtocolVersion: TLSV1_3, ecdhCurves: [P-384, Kurve, P-384, P-224, P-521], cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384, nonsense]}}
---
kind: Gateway
metadata: {name: ingress, namespace: istio-system}
spec:
  selector: {istio: ingress}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: ["secure.example"], tls: {mode: SIMPLE, credentialName: secure}}
  - {port: {number: 443, name: https-older, protocol: HTTPS}, hosts: ["older.example"], tls: {mode: SIMPLE, credentialName: secure, minProtocolVersion: TLSV1_2}}
  - {port: {number: 443, name: https-suite, protocol: HTTPS}, hosts: ["suite.example"], tls: {mode: SIMPLE, credentialName: secure, maxProtocolVersion: TLSV1_2, cipherSuites: [nonsense, ECDHE-ECDSA-AES128-GCM-SHA256]}}
  - port: {number: 443, name: https-all, protocol: HTTPS}
    hosts: ["all.example"]
    tls:
      mode: SIMPLE
      credentialName: secure
      minProtocolVersion: TLSV1_2
      cipherSuites: [ECDHE-ECDSA-AES128-GCM-SHA256, ECDHE-RSA-AES128-GCM-SHA256, ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-RSA-AES256-GCM-SHA384, ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-RSA-CHACHA20-POLY1305,
        ECDHE-ECDSA-AES128-SHA, ECDHE-RSA-AES128-SHA, ECDHE-ECDSA-AES256-SHA, ECDHE-RSA-AES256-SHA, AES128-GCM-SHA256, AES256-GCM-SHA384, AES128-SHA, AES256-SHA, DES-CBC3-SHA, "-SHA1"]
---
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [secure.example, older.example, suite.example, all.example]
  gateways: [istio-system/ingress]
  http: [{route: [{destination: {host: client, port: {number: 9000}}}]}]
---
kind: ServiceEntry
metadata: {name: outside}
spec:
  hosts: [outside.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: %s}}]
---
kind: DestinationRule
metadata: {name: outside}
spec:
  host: outside.example
  trafficPolicy: {tls: {mode: SIMPLE, sni: secure.example, insecureSkipVerify: true}}
`
