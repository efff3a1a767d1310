package ratelimit

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// TestOnlyWorkloadsMayAsk: over TCP with a credential, whoever is no workload of
// the trust domain gets no answer.
func TestOnlyWorkloadsMayAsk(t *testing.T) {
	ca, other := pkitest.NewRoot(t, "cluster.local"), pkitest.NewRoot(t, "cluster.local")
	dir, descriptors := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(descriptors, "d.yaml"), "domain: d\n")
	bundle := filepath.Join(dir, "roots.pem")
	writeFile(t, bundle, string(ca.PEM()))
	certPEM, keyPEM := ca.Issue(t, pkitest.Leaf("spiffe://cluster.local/writ/ratelimit", time.Hour))
	own := filepath.Join(dir, "own")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(own, "identity.pem"), string(certPEM)+string(keyPEM))
	c := DefaultConfig()
	c.Listen, c.Descriptors = proctest.Address(t), descriptors
	c.Credential = credential.Config{CA: "127.0.0.1:1", TrustBundle: bundle, TokenFile: "unused", Dir: own, TrustDomain: "cluster.local"}
	start(t, c)
	address := c.Listen
	proctest.Eventually(t, 10*time.Second, func() error {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})

	client := func(r *pkitest.Root, id string) credentials.TransportCredentials {
		cert := r.Pair(t, pkitest.Leaf(id, time.Hour))
		// The server's identity is not what this test is about.
		return credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) //nolint:gosec // see above
	}
	for _, c := range []struct {
		name  string
		creds credentials.TransportCredentials
		want  codes.Code
	}{
		{"a workload", client(ca, "spiffe://cluster.local/ns/a/sa/b"), codes.OK},
		{"a node agent", client(ca, "spiffe://cluster.local/writ/node/n1"), codes.PermissionDenied},
		{"another service", client(ca, "spiffe://cluster.local/writ/authz"), codes.PermissionDenied},
		{"another root", client(other, "spiffe://cluster.local/ns/a/sa/b"), codes.Unavailable},
		{"another trust domain", client(ca, "spiffe://example.org/ns/a/sa/b"), codes.Unavailable},
		{"no certificate", credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}), codes.Unavailable}, //nolint:gosec // as above
		{"plain text", insecure.NewCredentials(), codes.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(c.creds))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err = rlsv3.NewRateLimitServiceClient(conn).ShouldRateLimit(ctx,
				&rlsv3.RateLimitRequest{Domain: "d", Descriptors: []*commonv3.RateLimitDescriptor{desc("k", "v")}})
			if status.Code(err) != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}
