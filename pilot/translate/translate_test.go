package translate

import (
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

func splitAddress(tb testing.TB, addr string) (string, int) {
	tb.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		tb.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		tb.Fatal(err)
	}
	return host, n
}

func TestRedirectIsValid(t *testing.T) {
	t.Parallel()
	var all []*Snapshot
	for _, policy := range []string{"ALLOW_ANY", "REGISTRY_ONLY"} {
		b := newMesh(t)
		client := b.workload("client-1", "default", "client", map[string]string{"app": "client"}, "http:9000", "tcp:9001")
		db := b.workload("db-1", "default", "db", map[string]string{"app": "db"}, "mysql:3306", "tls:9443", "http:80")
		client.Interception, db.Interception = model.Redirect, model.Redirect
		b.service("client", "default", client)
		b.service("db", "default", db).Addresses = []string{"10.1.2.3"}
		b.service("headless", "default", db)
		b.apply(rules + `
---
kind: ServiceEntry
metadata: {name: outside}
spec:
  hosts: ["*.outside.example"]
  location: MESH_EXTERNAL
  resolution: NONE
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
---
kind: MeshConfig
metadata: {name: mesh}
spec:
  outboundTrafficPolicy: {mode: ` + policy + `}
`)
		all = append(all, b.snapshot(client), b.snapshot(db))
	}
	validate(t, all...)
}

func TestThinSlice(t *testing.T) {
	b := newMesh(t)
	client := b.workload("client-1", "default", "client", map[string]string{"app": "client"}, "http:9000")
	v1 := b.workload("reviews-v1-1", "default", "reviews", map[string]string{"app": "reviews", "version": "v1"}, "http:9080", "tcp-db:9090")
	v2 := b.workload("reviews-v2-1", "default", "reviews", map[string]string{"app": "reviews", "version": "v2"}, "http:9080", "tcp-db:9090")
	b.service("client", "default", client)
	b.service("reviews", "default", v1, v2)
	validate(t, b.snapshot(client), b.snapshot(v1))
}

func writeFile(tb testing.TB, path string, data []byte) {
	tb.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		tb.Fatal(err)
	}
}
