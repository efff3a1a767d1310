package credential

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/x509proof"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// TestProofs: each kind is read anew at each try, and the token comes last.
func TestProofs(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	leaf := pkitest.Leaf("", time.Hour)
	leaf.DNSNames = []string{"n1"}
	certPEM, keyPEM := pkitest.NewRoot(t, "").Issue(t, leaf)
	at := time.Unix(1_700_000_000, 0)
	csr := []byte("request")
	s := &Source{id: pilotID, now: func() time.Time { return at }, cfg: Config{
		TokenFile: file("token"), Join: join{KubernetesTokenFile: file("k8s"), CertFile: file("cert"), KeyFile: file("key")},
	}}
	reqs, err := s.proofs(csr)
	if len(reqs) != 0 || err == nil || !strings.Contains(err.Error(), "writ certs join-token") {
		t.Fatalf("without files %v, %v", reqs, err)
	}
	for name, data := range map[string]string{"token": "one\n", "k8s": "two\n", "cert": string(certPEM), "key": string(keyPEM)} {
		if err := os.WriteFile(file(name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if reqs, err = s.proofs(csr); err != nil || len(reqs) != 3 {
		t.Fatalf("%v, %v", reqs, err)
	}
	p := reqs[1].GetX509()
	if reqs[0].GetKubernetesToken() != "two" || reqs[2].GetToken() != "one" || p.GetTime() != at.Unix() || len(p.GetChain()) != 1 {
		t.Fatalf("%v", reqs)
	}
	cert, err := x509.ParseCertificate(p.GetChain()[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := x509proof.Verify(cert.PublicKey, csr, at, p.GetSignature()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(file("k8s"), []byte("three"), 0o600); err != nil {
		t.Fatal(err)
	}
	if reqs, err = s.proofs(csr); err != nil || reqs[0].GetKubernetesToken() != "three" {
		t.Errorf("%v, %v", reqs, err)
	}
	if err := os.Remove(file("token")); err != nil {
		t.Fatal(err)
	}
	if reqs, err = s.proofs(csr); len(reqs) != 2 || err == nil || reqs[0].GetProof().(*capb.JoinRequest_KubernetesToken).KubernetesToken != "three" {
		t.Errorf("without a token %v, %v", reqs, err)
	}
}

// TestUsedTokenDoesNotKeepAnotherProofOut, nor the other way round.
func TestUsedTokenDoesNotKeepAnotherProofOut(t *testing.T) {
	a := newAuthority(t, newRoot(t))
	cfg := setup(t, a)
	cfg.Join.KubernetesTokenFile = filepath.Join(t.TempDir(), "k8s")
	if err := os.WriteFile(cfg.Join.KubernetesTokenFile, []byte("not taken here"), 0o600); err != nil {
		t.Fatal(err)
	}
	newSource(t, cfg) // by the token
}

func TestValidateJoin(t *testing.T) {
	good := Config{CA: "127.0.0.1:8443", TrustBundle: "b", TokenFile: "t", Dir: "d", TrustDomain: "cluster.local"}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"both":                  {func(c *Config) { c.Join.KubernetesTokenFile = "k" }, ""},
		"Kubernetes alone":      {func(c *Config) { c.Join.KubernetesTokenFile, c.TokenFile = "k", "" }, ""},
		"a certificate":         {func(c *Config) { c.Join.CertFile, c.Join.KeyFile, c.TokenFile = "c", "k", "" }, ""},
		"a certificate, no key": {func(c *Config) { c.Join.CertFile = "c" }, "want both"},
		"none":                  {func(c *Config) { c.TokenFile = "" }, "token_file"},
	} {
		c := good
		tc.change(&c)
		if err := c.Validate(); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
