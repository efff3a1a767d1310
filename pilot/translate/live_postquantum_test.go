package translate

import (
	"crypto/tls"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/pkitest"
)

// TestLivePostQuantum: where the mesh requires a post-quantum key exchange, Envoys talk
// to each other, and no other group gets anybody in; where it prefers one, others do.
func TestLivePostQuantum(t *testing.T) {
	t.Parallel()
	const required = "kind: MeshConfig\nmetadata: {name: mesh}\nspec: {meshMTLS: {ecdhCurves: [X25519MLKEM768]}}\n"
	for i, bin := range envoytest.All(t) {
		for j, config := range []string{"", required} {
			t.Run(filepath.Base(filepath.Dir(filepath.Dir(bin)))+[]string{" prefers", " requires"}[j], func(t *testing.T) {
				m := newLive(t, byte(30+2*i+j))
				m.bin = bin
				client := m.workload("client-1", "default", "client", nil, port(t, "http", 9000))
				server := m.workload("server-1", "default", "server", nil, port(t, "http", 9080))
				m.service("client", "default", client)
				m.service("server", "default", server)
				if config != "" {
					m.apply(config)
				}
				m.echo(client, nil)
				m.echo(server, nil)
				m.start()
				if r := m.via(client, http.MethodGet, "http://server:9080/"); r.StatusCode != http.StatusOK {
					t.Errorf("between Envoys: %s %s", r.Status, r.body)
				}
				pair := m.ca.Pair(t, pkitest.Leaf("spiffe://cluster.local/ns/default/sa/client", time.Hour))
				for _, tc := range []struct {
					group tls.CurveID
					want  bool
				}{{tls.X25519MLKEM768, true}, {tls.X25519, config == ""}, {tls.CurveP256, config == ""}} {
					conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", hostPort(server.Address, 9080), &tls.Config{
						Certificates: []tls.Certificate{pair}, CurvePreferences: []tls.CurveID{tc.group}, NextProtos: []string{"h2"},
						InsecureSkipVerify: true, //nolint:gosec // the server's identity is not what this test is about
					})
					if (err == nil) != tc.want {
						t.Errorf("%s: %v", tc.group, err)
					}
					if err == nil {
						_ = conn.Close()
					}
				}
			})
		}
	}
}
