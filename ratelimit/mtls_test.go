package ratelimit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
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
	"github.com/writ-mesh/writ/internal/proctest"
)

// authority is a root that signs what a test asks for.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, trustDomain string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue returns certificate and key in PEM.
func (a *authority) issue(t *testing.T, id string) (certPEM, keyPEM []byte) {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{uri},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// TestOnlyWorkloadsMayAsk: over TCP with a credential, whoever is no workload of
// the trust domain gets no answer.
func TestOnlyWorkloadsMayAsk(t *testing.T) {
	ca, other := newAuthority(t, "cluster.local"), newAuthority(t, "cluster.local")
	dir, descriptors := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(descriptors, "d.yaml"), "domain: d\n")
	bundle := filepath.Join(dir, "roots.pem")
	writeFile(t, bundle, string(ca.pem()))
	certPEM, keyPEM := ca.issue(t, "spiffe://cluster.local/writ/ratelimit")
	own := filepath.Join(dir, "own")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(own, "identity.pem"), string(certPEM)+string(keyPEM))
	c := DefaultConfig()
	c.Listen, c.Descriptors = proctest.Address(t), descriptors
	c.Credential = credential.Config{CA: "127.0.0.1:1", TrustBundle: bundle, Dir: own, TrustDomain: "cluster.local"}
	start(t, c)
	address := c.Listen
	proctest.Eventually(t, 10*time.Second, func() error {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})

	client := func(a *authority, id string) credentials.TransportCredentials {
		certPEM, keyPEM := a.issue(t, id)
		cert, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
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
