package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/nodeattest"
	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/x509proof"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// cluster signs tokens as a Kubernetes cluster does.
type cluster struct {
	t    *testing.T
	key  *rsa.PrivateKey
	jwks string // the file with its public key
}

// clusterKey and otherKey are made once for all tests.
var clusterKey, otherKey = sync.OnceValues(makeClusterKey), sync.OnceValues(makeClusterKey)

func makeClusterKey() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) }

func newCluster(t *testing.T, made func() (*rsa.PrivateKey, error)) *cluster {
	t.Helper()
	key, err := made()
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "RS256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, key: key, jwks: filepath.Join(t.TempDir(), "jwks.json")}
	if err := os.WriteFile(c.jwks, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) config() nodeattest.Kubernetes {
	return nodeattest.Kubernetes{
		Issuer: "https://cluster", Audiences: []string{"writ-ca"}, JWKSFile: c.jwks,
		NodeAgents: []string{"writ/nodeagent"}, Services: map[string]string{"writ/pilot": "pilot", "writ/ca": "ca"},
	}
}

func (c *cluster) token(account, node string) string {
	c.t.Helper()
	sig, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: c.key}, (&jose.SignerOptions{}).WithHeader("kid", "k1"))
	if err != nil {
		c.t.Fatal(err)
	}
	named := func(s string) map[string]string { return map[string]string{"name": s, "uid": "u"} }
	token, err := jwt.Signed(sig).Claims(map[string]any{
		"iss": "https://cluster", "aud": []string{"writ-ca"}, "sub": "system:serviceaccount:writ:" + account, "exp": time.Now().Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": "writ", "serviceaccount": named(account), "pod": named("p"), "node": named(node)},
	}).Serialize()
	if err != nil {
		c.t.Fatal(err)
	}
	return token
}

func TestJoinByServiceAccount(t *testing.T) {
	c := newCluster(t, clusterKey)
	h := start(t, func(cfg *Config) { cfg.Join.Kubernetes = []nodeattest.Kubernetes{c.config()} })
	join := func(token, csrFor string) (string, error) {
		key, der := request(t, csrFor)
		resp, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Csr: der, Proof: &capb.JoinRequest_KubernetesToken{KubernetesToken: token}})
		if err != nil {
			return "", err
		}
		return h.svid(resp, key).ID.String(), nil
	}
	token := c.token("nodeagent", "n1")
	for range 2 { // it is no one-time token
		if id, err := join(token, ""); err != nil || id != nodeID {
			t.Errorf("%s, %v", id, err)
		}
	}
	if id, err := join(c.token("pilot", "n1"), ""); err != nil || id != pilotID {
		t.Errorf("%s, %v", id, err)
	}
	records := h.ledger(&capb.ListCertificatesRequest{SpiffeId: nodeID})
	if len(records) != 2 || records[0].GetRequester() != "kubernetes writ/nodeagent" || !slices.Contains(records[0].GetFacts(), "k8s:node-name:n1") {
		t.Errorf("the ledger has %v", records)
	}
	for name, tc := range map[string]struct{ token, csr string }{
		"another node's name in the request": {token, "spiffe://example.org/writ/node/n2"},
		"another cluster's token":            {newCluster(t, otherKey).token("nodeagent", "n1"), ""},
		"a service account of nobody":        {c.token("default", "n1"), ""},
		"the authority itself":               {c.token("ca", "n1"), ""},
		"nothing":                            {"", ""},
	} {
		_, err := join(tc.token, tc.csr)
		if code := status.Code(err); code != codes.PermissionDenied && code != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		if s := status.Convert(err).Message(); strings.Contains(s, "signature") || strings.Contains(s, "writ/default") {
			t.Errorf("%s: a stranger is told %q", name, s)
		}
	}
	if err := os.Remove(c.jwks); err != nil {
		t.Fatal(err)
	}
	_, err := join(token, "")
	wantCode(t, err, codes.Unavailable)
}

func TestJoinIsNotOfferedUnlessConfigured(t *testing.T) {
	h := start(t, nil)
	_, der := request(t, "")
	_, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Csr: der, Proof: &capb.JoinRequest_KubernetesToken{KubernetesToken: newCluster(t, clusterKey).token("nodeagent", "n1")}})
	wantCode(t, err, codes.PermissionDenied)
	_, err = h.as(nil).Join(t.Context(), &capb.JoinRequest{Csr: der, Proof: &capb.JoinRequest_X509{X509: &capb.X509Proof{}}})
	wantCode(t, err, codes.PermissionDenied)
}

// TestJoinByAnotherAuthority is with the client that services have.
func TestJoinByAnotherAuthority(t *testing.T) {
	root := pkitest.NewRoot(t, "")
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	h := start(t, func(c *Config) {
		c.Listen = proctest.Address(t)
		c.Join.X509 = []nodeattest.X509{{Roots: file("roots.pem", root.PEM()), Name: "dns", Suffix: ".example.org"}}
	})
	leaf := pkitest.Leaf("", time.Hour)
	leaf.DNSNames = []string{"n1.example.org"}
	certPEM, keyPEM := root.Issue(t, leaf)
	cfg := credential.Config{
		CA: h.config.Listen, TrustBundle: h.config.trustBundle(), Dir: filepath.Join(dir, "identity"), TrustDomain: td.Name(),
	}
	cfg.Join.CertFile, cfg.Join.KeyFile = file("cert.pem", certPEM), file("key.pem", keyPEM)
	ctx, cancel := context.WithTimeout(t.Context(), testBudget)
	defer cancel()
	if _, err := credential.New(ctx, cfg, spiffeid.RequireFromString(nodeID), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if r := h.ledger(&capb.ListCertificatesRequest{SpiffeId: nodeID}); len(r) != 1 || !strings.HasPrefix(r[0].GetRequester(), "x509 serial ") {
		t.Errorf("the ledger has %v", r)
	}

	// Who copies the proof has no use of it: with his own request it is refused.
	pair := root.Pair(t, leaf)
	_, der := request(t, "")
	_, other := request(t, "")
	at := time.Now()
	sig, err := x509proof.Sign(pair.PrivateKey.(crypto.Signer), der, at)
	if err != nil {
		t.Fatal(err)
	}
	proof := &capb.JoinRequest_X509{X509: &capb.X509Proof{Chain: pair.Certificate[:1], Time: at.Unix(), Signature: sig}}
	_, err = h.as(nil).Join(t.Context(), &capb.JoinRequest{Csr: der, Proof: proof})
	wantCode(t, err, codes.OK)
	_, err = h.as(nil).Join(t.Context(), &capb.JoinRequest{Csr: other, Proof: proof})
	wantCode(t, err, codes.PermissionDenied)
}
