package translate

import (
	"net"
	"strconv"
	"testing"
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

func TestThinSlice(t *testing.T) {
	b := newMesh(t)
	client := b.workload("client-1", "default", "client", map[string]string{"app": "client"}, "http:9000")
	v1 := b.workload("reviews-v1-1", "default", "reviews", map[string]string{"app": "reviews", "version": "v1"}, "http:9080", "tcp-db:9090")
	v2 := b.workload("reviews-v2-1", "default", "reviews", map[string]string{"app": "reviews", "version": "v2"}, "http:9080", "tcp-db:9090")
	b.service("client", "default", client)
	b.service("reviews", "default", v1, v2)
	validate(t, b.snapshot(client))
	validate(t, b.snapshot(v1))
}
