package nodeattest_test

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/nodeattest"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/x509proof"
)

func newRoot(t *testing.T) *pkitest.Root {
	t.Helper()
	return pkitest.NewRoot(t, "")
}

// machine is the certificate of a machine of another authority.
func machine(dns string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: dns}, DNSNames: []string{dns},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

func TestX509(t *testing.T) {
	root, foreign := newRoot(t), newRoot(t)
	cfg := nodeattest.X509{Roots: write(t, "roots.pem", root.PEM()), Name: "dns", Suffix: ".nodes.example.org"}
	c := nodeattest.Config{X509: []nodeattest.X509{cfg}}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	a := nodeattest.New(c, td, func() time.Time { return now })
	csr := []byte("a certificate request")
	proof := func(r *pkitest.Root, m *x509.Certificate, at time.Time) nodeattest.X509Proof {
		t.Helper()
		pair := r.Pair(t, m)
		sig, err := x509proof.Sign(pair.PrivateKey.(crypto.Signer), csr, at)
		if err != nil {
			t.Fatal(err)
		}
		return nodeattest.X509Proof{Chain: pair.Certificate[:1], Time: at, Signature: sig}
	}
	with := func(change func(*x509.Certificate)) *x509.Certificate {
		m := machine("n1.nodes.example.org")
		change(m)
		return m
	}
	good := proof(root, machine("n1.nodes.example.org"), now)
	if e, err := a.X509(good, csr); err != nil || e.ID.Path() != "/writ/node/n1" || !strings.HasPrefix(e.Requester, "x509 serial ") {
		t.Fatalf("%+v, %v", e, err)
	}
	stolen := proof(root, machine("n2.nodes.example.org"), now)
	stolen.Signature = good.Signature
	late := good
	late.Time = now.Add(time.Second)
	for name, tc := range map[string]struct {
		p   nodeattest.X509Proof
		csr []byte
	}{
		"replayed with another request":  {good, []byte("another request")},
		"another time than the signed":   {late, csr},
		"another certificate":            {stolen, csr},
		"old":                            {proof(root, machine("n1.nodes.example.org"), now.Add(-61*time.Second)), csr},
		"of the future":                  {proof(root, machine("n1.nodes.example.org"), now.Add(61*time.Second)), csr},
		"another root":                   {proof(foreign, machine("n1.nodes.example.org"), now), csr},
		"another domain":                 {proof(root, machine("n1.example.org"), now), csr},
		"no name but the suffix":         {proof(root, machine(".nodes.example.org"), now), csr},
		"two names":                      {proof(root, with(func(m *x509.Certificate) { m.DNSNames = append(m.DNSNames, "n2.nodes.example.org") }), now), csr},
		"the name in another place":      {proof(root, with(func(m *x509.Certificate) { m.DNSNames = nil }), now), csr},
		"expired":                        {proof(root, with(func(m *x509.Certificate) { m.NotAfter = now.Add(-time.Second) }), now), csr},
		"not valid yet":                  {proof(root, with(func(m *x509.Certificate) { m.NotBefore = now.Add(time.Second) }), now), csr},
		"for servers only":               {proof(root, with(func(m *x509.Certificate) { m.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), now), csr},
		"an authority":                   {proof(root, with(func(m *x509.Certificate) { m.IsCA, m.BasicConstraintsValid = true, true }), now), csr},
		"no chain":                       {nodeattest.X509Proof{Time: now, Signature: good.Signature}, csr},
		"no certificate":                 {nodeattest.X509Proof{Chain: [][]byte{[]byte("x")}, Time: now, Signature: good.Signature}, csr},
		"a chain without end":            {nodeattest.X509Proof{Chain: make([][]byte, 9), Time: now, Signature: good.Signature}, csr},
		"a certificate that is too long": {nodeattest.X509Proof{Chain: [][]byte{make([]byte, 17<<10)}, Time: now, Signature: good.Signature}, csr},
		"no signature":                   {nodeattest.X509Proof{Chain: good.Chain, Time: now}, csr},
	} {
		if e, err := a.X509(tc.p, tc.csr); err == nil {
			t.Errorf("%s: it is %s", name, e.ID)
		} else if errors.Is(err, nodeattest.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Remove(cfg.Roots); err != nil {
		t.Fatal(err)
	}
	if _, err := a.X509(good, csr); !errors.Is(err, nodeattest.ErrUnavailable) {
		t.Errorf("without roots: %v", err)
	}
	if _, err := nodeattest.New(nodeattest.Config{}, td, time.Now).X509(good, csr); err == nil {
		t.Error("a proof is taken that is not configured")
	}
	if _, err := nodeattest.New(nodeattest.Config{}, td, time.Now).Kubernetes(t.Context(), "x"); err == nil {
		t.Error("a token is taken that is not configured")
	}
}

func TestX509Names(t *testing.T) {
	root := newRoot(t)
	roots := write(t, "roots.pem", root.PEM())
	m := machine("n1.example.org")
	m.URIs = []*url.URL{{Scheme: "spiffe", Host: "old", Path: "/agent/n9"}, {Scheme: "https", Host: "x"}}
	pair := root.Pair(t, m)
	csr := []byte("r")
	sig, err := x509proof.Sign(pair.PrivateKey.(crypto.Signer), csr, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		x    nodeattest.X509
		want string
	}{
		{nodeattest.X509{Name: "common_name", Suffix: ".example.org"}, "n1"},
		{nodeattest.X509{Name: "common_name", NodePrefix: "x-"}, "x-n1.example.org"},
		{nodeattest.X509{Name: "uri", Prefix: "spiffe://old/agent/"}, "n9"},
		{nodeattest.X509{Name: "uri", Prefix: "spiffe://old/"}, ""}, // agent/n9 is no name
		{nodeattest.X509{Name: "uri"}, ""},
		{nodeattest.X509{Name: "dns", Prefix: "m-"}, ""},
	} {
		tc.x.Roots = roots
		a := nodeattest.New(nodeattest.Config{X509: []nodeattest.X509{tc.x}}, td, func() time.Time { return now })
		e, err := a.X509(nodeattest.X509Proof{Chain: pair.Certificate[:1], Time: now, Signature: sig}, csr)
		if (err == nil) != (tc.want != "") || err == nil && e.ID.Path() != "/writ/node/"+tc.want {
			t.Errorf("%+v: %s, %v, want %q", tc.x, e.ID, err, tc.want)
		}
	}
	for _, bad := range []nodeattest.X509{{Name: "dns"}, {Roots: "r"}, {Roots: "r", Name: "ip"}} {
		if (nodeattest.Config{X509: []nodeattest.X509{bad}}).Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}
