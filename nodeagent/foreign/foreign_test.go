package foreign

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// authority is one of a kind that the tests' own roots are not.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// newAuthority changes a template; above is nil for a root.
func newAuthority(t *testing.T, key crypto.Signer, above *authority, change func(*x509.Certificate)) *authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: fmt.Sprintf("odd %T", key)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	change(template)
	if above == nil {
		above = &authority{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, above.cert, key.Public(), above.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pair(t *testing.T, id string) tls.Certificate {
	t.Helper()
	key := pkitest.NewKey(t)
	der, err := x509.CreateCertificate(rand.Reader, pkitest.Leaf(id, time.Hour), a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// odd are roots as other authorities make them.
func odd(t *testing.T) map[string]*authority {
	t.Helper()
	old, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := newAuthority(t, pkitest.NewKey(t), nil, func(c *x509.Certificate) { c.Subject.CommonName = "above" })
	return map[string]*authority{
		"RSA":                    newAuthority(t, old, nil, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }),
		"Ed25519":                newAuthority(t, ed, nil, func(*x509.Certificate) {}),
		"for leaves only":        newAuthority(t, pkitest.NewKey(t), nil, func(c *x509.Certificate) { c.MaxPathLenZero = true }),
		"an intermediate itself": newAuthority(t, pkitest.NewKey(t), root, func(c *x509.Certificate) { c.Subject.CommonName = "below" }),
		"of other names": newAuthority(t, pkitest.NewKey(t), nil, func(c *x509.Certificate) {
			c.Subject.CommonName, c.PermittedURIDomains = "elsewhere", []string{"elsewhere.example"}
		}),
	}
}

// fixture are four trust domains; a is ours, and d-4 has several roots.
type fixture struct {
	a, b, c *pkitest.Root
	// next is a second root of b, of the same name.
	next *pkitest.Root
	d    map[string]*authority
	// list is a revocation list of a with one certificate, revoked.
	list    []byte
	revoked tls.Certificate
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{a: pkitest.NewRoot(t, "a.example"), b: pkitest.NewRoot(t, "b.example"), c: pkitest.NewRoot(t, "c.example"), next: pkitest.NewRoot(t, "b.example"), d: odd(t)}
	f.revoked = f.a.Pair(t, pkitest.Leaf("spiffe://a.example/ns/x/sa/revoked", time.Hour))
	var err error
	f.list, err = f.a.CRL(&x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: f.revoked.Leaf.SerialNumber, RevocationTime: time.Now()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func uri(t *testing.T, s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// bootstrap of an Envoy that answers whoever has an identity of one of the trust
// domains.
func (f *fixture) bootstrap(t *testing.T, at string) string {
	t.Helper()
	host, port, _ := strings.Cut(at, ":")
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	inline := func(b []byte) any { return map[string]any{"inline_string": string(b)} }
	domains := []any{map[string]any{"name": "a.example", "trust_bundle": inline(append(f.a.PEM(), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: f.list})...))}}
	var names []any
	foreign := map[string][]*x509.Certificate{"b.example": {f.b.Cert, f.next.Cert}, "c.example": {f.c.Cert}, "d-4": nil}
	for _, a := range f.d {
		foreign["d-4"] = append(foreign["d-4"], a.cert)
	}
	for td, roots := range foreign {
		bundle, err := Bound(spiffeid.RequireTrustDomainFromString(td), roots)
		if err != nil {
			t.Fatal(err)
		}
		domains = append(domains, map[string]any{"name": td, "trust_bundle": inline(bundle)})
	}
	for _, td := range []string{"a.example", "b.example", "c.example", "d-4"} {
		names = append(names, map[string]any{"san_type": "URI", "matcher": map[string]any{"prefix": "spiffe://" + td + "/"}})
	}
	cert, key := f.a.Issue(t, pkitest.Leaf("spiffe://a.example/ns/x/sa/server", time.Hour))
	config := map[string]any{"static_resources": map[string]any{"listeners": []any{map[string]any{
		"name": "web", "address": map[string]any{"socket_address": map[string]any{"address": host, "port_value": n}},
		"filter_chains": []any{map[string]any{
			"transport_socket": map[string]any{"name": "envoy.transport_sockets.tls", "typed_config": map[string]any{
				"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", "require_client_certificate": true,
				"common_tls_context": map[string]any{
					"tls_certificates": []any{map[string]any{"certificate_chain": inline(cert), "private_key": inline(key)}},
					"validation_context": map[string]any{
						"match_typed_subject_alt_names": names,
						"custom_validator_config": map[string]any{"name": "envoy.tls.cert_validator.spiffe", "typed_config": map[string]any{
							"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig", "trust_domains": domains,
						}},
					},
				},
			}},
			"filters": []any{map[string]any{"name": "envoy.filters.network.http_connection_manager", "typed_config": map[string]any{
				"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "web",
				"route_config": map[string]any{"virtual_hosts": []any{map[string]any{"name": "all", "domains": []any{"*"}, "routes": []any{
					map[string]any{"match": map[string]any{"prefix": "/"}, "direct_response": map[string]any{"status": 200, "body": map[string]any{"inline_string": "yes"}}},
				}}}},
				"http_filters": []any{map[string]any{"name": "envoy.filters.http.router", "typed_config": map[string]any{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}},
			}}},
		}},
	}}}}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// call tells whether the Envoy takes a certificate.
func call(at string, pair tls.Certificate) error {
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // the client's certificate is what this is about
		// Whatever the server asks for.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	}}
	resp, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Get("https://" + at + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// TestEnvoyTakesNobodyForAnother: with real Envoys, an authority vouches for its own
// trust domain and for no other, whatever names it puts into a certificate.
func TestEnvoyTakesNobodyForAnother(t *testing.T) {
	f := newFixture(t)
	const a, b, c = "spiffe://a.example/ns/x/sa/y", "spiffe://b.example/ns/x/sa/y", "spiffe://c.example/ns/x/sa/y"
	leaf := func(root *pkitest.Root, first string, more ...string) tls.Certificate {
		l := pkitest.Leaf(first, time.Hour)
		for _, m := range more {
			if name, ok := strings.CutPrefix(m, "DNS:"); ok {
				l.DNSNames = append(l.DNSNames, name)
			} else {
				l.URIs = append(l.URIs, uri(t, m))
			}
		}
		return root.Pair(t, l)
	}
	expired := pkitest.Leaf(b, time.Hour)
	expired.NotBefore, expired.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
	with := func(pair tls.Certificate, more ...[]byte) tls.Certificate {
		pair.Certificate = append(pair.Certificate, more...)
		return pair
	}
	middle := f.b.Middle(t)
	server := pkitest.Leaf(b, time.Hour)
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	type attempt struct {
		pair tls.Certificate
		ok   bool
	}
	cases := map[string]attempt{
		"ours":                                      {leaf(f.a, a), true},
		"ours, revoked":                             {f.revoked, false},
		"another's":                                 {leaf(f.b, b), true},
		"another's, of its next root":               {leaf(f.next, b), true},
		"ours, by its next root":                    {leaf(f.next, a), false},
		"another's, of any path":                    {leaf(f.b, "spiffe://b.example/billing"), true},
		"another's, with its root":                  {with(leaf(f.b, b), f.b.Cert.Raw), true},
		"another's, by an intermediate":             {with(leaf(middle, b), middle.Cert.Raw), true},
		"a third's":                                 {leaf(f.c, c), true},
		"ours, signed by another":                   {leaf(f.b, a), false},
		"ours, by another's intermediate":           {with(leaf(middle, a), middle.Cert.Raw), false},
		"a third's, signed by another":              {leaf(f.b, c), false},
		"another's, signed by us":                   {leaf(f.a, b), false},
		"another's and ours":                        {leaf(f.b, b, a), false},
		"ours and another's, signed by another":     {leaf(f.b, a, b), false},
		"another's and a third's":                   {leaf(f.b, b, c), false},
		"another's and ours, by an intermediate":    {with(leaf(middle, b, a), middle.Cert.Raw), false},
		"another's and ours as a DNS name":          {leaf(f.b, b, "DNS:"+strings.TrimPrefix(a, "spiffe://")), false},
		"another's and a DNS name":                  {leaf(f.b, b, "DNS:web.b.example"), false},
		"another's below a subdomain":               {leaf(f.b, "spiffe://x.b.example/ns/x/sa/y"), false},
		"another's, with a name that looks like it": {leaf(f.b, b, "spiffe://b.example.a.example/ns/x/sa/y"), false},
		"another's, for servers":                    {f.b.Pair(t, server), true}, // usages do not count
		"another's, expired":                        {f.b.Pair(t, expired), false},
		"nobody's":                                  {leaf(pkitest.NewRoot(t, "b.example"), b), false},
		"an unknown trust domain's":                 {leaf(f.b, "spiffe://e.example/ns/x/sa/y"), false},
	}
	for name, d := range f.d {
		// What a root forbids itself stays so.
		cases["by a root: "+name] = attempt{d.pair(t, "spiffe://d-4/x"), name != "of other names"}
		cases["ours, by a root: "+name] = attempt{d.pair(t, a), false}
	}
	for _, envoy := range envoytest.All(t) {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(envoy))), func(t *testing.T) {
			at := proctest.Address(t)
			p := envoytest.Run(t, envoy, f.bootstrap(t, at))
			ours := leaf(f.a, a)
			proctest.Eventually(t, 20*time.Second, func() error {
				select {
				case <-p.Done():
					t.Fatalf("Envoy ended: %s", p.Output.String())
				default:
				}
				return call(at, ours)
			})
			for name, tc := range cases {
				if err := call(at, tc.pair); (err == nil) != tc.ok {
					t.Errorf("%s: accepted is %v, want %v (%v)", name, err == nil, tc.ok, err)
				}
			}
		})
	}
}

func TestBoundRefuses(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("b.example")
	root := pkitest.NewRoot(t, "b.example")
	leaf := root.Pair(t, pkitest.Leaf("spiffe://b.example/x", time.Hour)).Leaf
	strange := newAuthority(t, pkitest.NewKey(t), nil, func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
	}).cert
	for name, roots := range map[string][]*x509.Certificate{
		"no root": nil, "too many roots": make([]*x509.Certificate, maxRoots+1), "a leaf": {leaf}, "a root and a leaf": {root.Cert, leaf},
		"a root with a condition of its own": {strange},
	} {
		if out, err := Bound(td, roots); err == nil {
			t.Errorf("%s: %.40s", name, out)
		}
	}
	if _, err := Bound(spiffeid.RequireTrustDomainFromString("b_1"), []*x509.Certificate{root.Cert}); err == nil {
		t.Error("a name with an underscore, which no Envoy verifies")
	}
}
