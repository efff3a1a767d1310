package plugged

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/proctest"
)

var (
	update = flag.Bool("update", false, "write testdata anew")
	td     = spiffeid.RequireTrustDomainFromString("example.org")
	// noon is now for everything here but the watching.
	noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
)

// pair is a certificate with its key.
type pair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// issue makes an authority's certificate; by is nil for a root.
func issue(t testing.TB, name string, by *pair, change ...func(*x509.Certificate)) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return issueFor(t, name, key, by, change...)
}

func issueFor(t testing.TB, name string, key crypto.Signer, by *pair, change ...func(*x509.Certificate)) *pair {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
	}
	for _, f := range change {
		f(template)
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{cert, key}
}

func encode(pairs ...*pair) []byte {
	var out []byte
	for _, p := range pairs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})...)
	}
	return out
}

func encodeKey(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// tree is a directory with a good set: root, policy authority, issuing authority.
type tree struct {
	dir                   string
	root, policy, issuing *pair
}

func newTree(t testing.TB) *tree {
	t.Helper()
	tr := &tree{dir: t.TempDir()}
	tr.root = issue(t, "root", nil)
	tr.policy = issue(t, "policy", tr.root)
	tr.issuing = issue(t, "issuing", tr.policy)
	tr.put(t, CertFile, encode(tr.issuing))
	tr.put(t, KeyFile, encodeKey(t, tr.issuing.key))
	tr.put(t, ChainFile, encode(tr.issuing, tr.policy, tr.root))
	tr.put(t, RootFile, encode(tr.root))
	return tr
}

// issuer puts another issuing authority under the policy one.
func (tr *tree) issuer(t testing.TB, p *pair) {
	t.Helper()
	tr.put(t, CertFile, encode(p))
	tr.put(t, KeyFile, encodeKey(t, p.key))
	tr.put(t, ChainFile, encode(p, tr.policy))
}

func (tr *tree) put(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(tr.dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (tr *tree) load() (Set, error) { return Load(tr.dir, nil, td, noon) }

func TestLoad(t *testing.T) {
	old := issue(t, "old root", nil)
	rsaKey, err := rsa.GenerateKey(rand.Reader, minRSA)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*tree)
		chain  []string
		roots  int
	}{
		"chain with its root":    {func(*tree) {}, []string{"issuing", "policy"}, 1},
		"chain without its root": {func(tr *tree) { tr.put(t, ChainFile, encode(tr.issuing, tr.policy)) }, []string{"issuing", "policy"}, 1},
		"several roots":          {func(tr *tree) { tr.put(t, RootFile, encode(old, tr.root)) }, []string{"issuing", "policy"}, 2},
		"directly under the root, without a chain": {func(tr *tree) {
			p := issue(t, "direct", tr.root)
			tr.issuer(t, p)
			if err := os.Remove(filepath.Join(tr.dir, ChainFile)); err != nil {
				t.Fatal(err)
			}
		}, []string{"direct"}, 1},
		"the root issues": {func(tr *tree) {
			tr.put(t, CertFile, encode(tr.root))
			tr.put(t, KeyFile, encodeKey(t, tr.root.key))
			tr.put(t, ChainFile, encode(tr.root))
		}, []string{"root"}, 1},
		"an RSA key in the old form": {func(tr *tree) {
			tr.issuer(t, issueFor(t, "rsa", rsaKey, tr.policy))
			tr.put(t, KeyFile, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}))
		}, []string{"rsa", "policy"}, 1},
		"names that are allowed": {func(tr *tree) {
			tr.issuer(t, issue(t, "constrained", tr.policy, func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.org"} }))
		}, []string{"constrained", "policy"}, 1},
		"as many authorities as are allowed": {func(tr *tree) {
			tr.policy = issue(t, "policy", tr.root, func(c *x509.Certificate) { c.MaxPathLen = 1 })
			tr.issuer(t, issue(t, "last", tr.policy, func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = true, 0 }))
		}, []string{"last", "policy"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			tc.change(tr)
			s, err := tr.load()
			if err != nil {
				t.Fatal(err)
			}
			var chain []string
			for _, c := range s.Chain {
				chain = append(chain, c.Subject.CommonName)
			}
			if !slices.Equal(chain, tc.chain) || len(s.Roots) != tc.roots || !s.Root.Equal(tr.root.cert) {
				t.Errorf("chain %v under %s with %d roots, want %v and %d", chain, s.Root.Subject, len(s.Roots), tc.chain, tc.roots)
			}
			if again, err := tr.load(); err != nil || !s.Equal(again) {
				t.Errorf("the same files are another set: %v", err)
			}
		})
	}
}

// TestKeyElsewhere: the key is not in the directory.
func TestKeyElsewhere(t *testing.T) {
	tr := newTree(t)
	if err := os.Remove(filepath.Join(tr.dir, KeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(tr.dir, tr.issuing.key, td, noon); err != nil {
		t.Error(err)
	}
	_, err := Load(tr.dir, tr.policy.key, td, noon)
	if want := "the key of authority.kms is not the key of"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// TestBadFiles: what is wrong is said of the file that it is in; the words are
// those of testdata/errors.golden.
func TestBadFiles(t *testing.T) {
	var got strings.Builder
	for _, tc := range badFiles(t) {
		tr := newTree(t)
		tc.change(tr)
		_, err := tr.load()
		if err == nil {
			t.Errorf("%s: no error", tc.name)
			continue
		}
		fmt.Fprintf(&got, "%s\n    %s\n", tc.name, strings.ReplaceAll(err.Error(), tr.dir, "DIR"))
	}
	golden := filepath.Join("testdata", "errors.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("other words than %s (-update writes it anew):\n%s", golden, got.String())
	}
}

type badFile struct {
	name   string
	change func(*tree)
}

func badFiles(t *testing.T) []badFile {
	with := func(change func(*x509.Certificate)) func(*tree) {
		return func(tr *tree) { tr.issuer(t, issue(t, "bad", tr.policy, change)) }
	}
	return append([]badFile{
		{"expired", with(func(c *x509.Certificate) { c.NotAfter = noon.Add(-time.Minute) })},
		{"not yet valid", with(func(c *x509.Certificate) { c.NotBefore = noon.Add(time.Minute) })},
		{"no authority", with(func(c *x509.Certificate) { c.IsCA, c.MaxPathLen = false, 0 })},
		{"may not sign certificates", with(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })},
		{"no key identifier", with(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 14}, Value: []byte{4, 0}}}
		})},
		{"another trust domain permitted", with(func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.com"} })},
		{"the trust domain excluded", with(func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"example.org"} })},
		{"servers only", with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })},
		{"path length of the authority above", func(tr *tree) {
			tr.policy = issue(t, "policy", tr.root, func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = true, 0 })
			tr.issuer(t, issue(t, "issuing", tr.policy))
		}},
		{"path length of the root", func(tr *tree) {
			tr.root = issue(t, "root", nil, func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = true, 0 })
			tr.put(t, RootFile, encode(tr.root))
			tr.policy = tr.root
			tr.issuer(t, issue(t, "issuing", tr.root))
		}},
		{"authority above expired", func(tr *tree) {
			tr.policy = issue(t, "policy", tr.root, func(c *x509.Certificate) { c.NotAfter = noon.Add(-time.Minute) })
			tr.issuer(t, issue(t, "issuing", tr.policy))
		}},
		{"root expired", func(tr *tree) {
			tr.put(t, RootFile, encode(tr.root, issue(t, "old root", nil, func(c *x509.Certificate) { c.NotAfter = noon })))
		}},
		{"root not self-signed", func(tr *tree) { tr.put(t, RootFile, encode(tr.root, tr.policy)) }},
		{"under another root", func(tr *tree) { tr.put(t, RootFile, encode(issue(t, "other root", nil))) }},
		{"under a root of the same name", func(tr *tree) { tr.put(t, RootFile, encode(issue(t, "root", nil))) }},
	}, badBytes(t)...)
}

// badBytes are files whose content is no content, or in the wrong place.
func badBytes(t *testing.T) []badFile {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, data func(*tree) []byte) func(*tree) {
		return func(tr *tree) { tr.put(t, name, data(tr)) }
	}
	text := func(s string) func(*tree) []byte { return func(*tree) []byte { return []byte(s) } }
	return []badFile{
		{"key mode", func(tr *tree) {
			if err := os.Chmod(filepath.Join(tr.dir, KeyFile), 0o640); err != nil {
				t.Fatal(err)
			}
		}},
		{"key missing", func(tr *tree) {
			if err := os.Remove(filepath.Join(tr.dir, KeyFile)); err != nil {
				t.Fatal(err)
			}
		}},
		{"key of another certificate", put(KeyFile, func(tr *tree) []byte { return encodeKey(t, tr.policy.key) })},
		{"key cut off", put(KeyFile, func(tr *tree) []byte { return encodeKey(t, tr.issuing.key)[:100] })},
		{"key encrypted", put(KeyFile, func(*tree) []byte {
			return pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}})
		})},
		{"key damaged", put(KeyFile, func(*tree) []byte { return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}) })},
		{"key too short", put(KeyFile, func(*tree) []byte { return encodeKey(t, weak) })},
		{"certificate in place of the key", put(KeyFile, func(tr *tree) []byte { return encode(tr.issuing) })},
		{"key in place of the certificate", put(CertFile, func(tr *tree) []byte { return encodeKey(t, tr.issuing.key) })},
		{"chain in place of the certificate", put(CertFile, func(tr *tree) []byte { return encode(tr.issuing, tr.policy) })},
		{"chain from the root down", put(ChainFile, func(tr *tree) []byte { return encode(tr.root, tr.policy, tr.issuing) })},
		{"chain with two swapped", put(ChainFile, func(tr *tree) []byte { return encode(tr.issuing, tr.root, tr.policy) })},
		{"chain with one missing", put(ChainFile, func(tr *tree) []byte { return encode(tr.issuing) })},
		{"chain cut off", put(ChainFile, func(tr *tree) []byte { return encode(tr.issuing, tr.policy)[:900] })},
		{"chain with text", put(ChainFile, func(tr *tree) []byte { return append(encode(tr.issuing), "subject: policy\n"...) })},
		{"roots empty", put(RootFile, text("\n"))},
		{"roots too many", put(RootFile, func(tr *tree) []byte { return encode(slices.Repeat([]*pair{tr.root}, maxCertificates+1)...) })},
		{"roots no certificate", put(RootFile, text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))},
		{"roots too long", put(RootFile, text(strings.Repeat("\n", maxSize+1)))},
	}
}

func FuzzParseCertificates(f *testing.F) {
	tr := newTree(f)
	good := encode(tr.issuing, tr.policy, tr.root)
	f.Add(good)
	f.Add(good[:len(good)-20])
	f.Add(append([]byte("text\n"), good...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nk: v\n\nAAAA\n-----END CERTIFICATE-----"))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := ParseCertificates(data)
		if err != nil {
			return
		}
		if len(certs) == 0 || len(certs) > maxCertificates {
			t.Fatalf("%d certificates without an error", len(certs))
		}
		var pairs []*pair
		for _, c := range certs {
			pairs = append(pairs, &pair{cert: c})
		}
		again, err := ParseCertificates(encode(pairs...))
		if err != nil || len(again) != len(certs) {
			t.Fatalf("what was read cannot be written and read again: %v", err)
		}
	})
}

// TestWatch: a change is told, once, and a look without a change is not.
func TestWatch(t *testing.T) {
	tr := newTree(t)
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan Set, 10)
	done := make(chan error, 1)
	go func() {
		done <- Watch(ctx, tr.dir, func(context.Context) {
			if s, err := tr.load(); err == nil {
				told <- s
			}
		})
	}()
	next := issue(t, "next", tr.policy)
	tr.issuer(t, next)
	var got Set
	proctest.Until(t, 20*time.Second, "the new set is told", func() bool {
		select {
		case got = <-told:
			return got.Issuer().Equal(next.cert)
		default:
			return false
		}
	})
	cancel()
	<-done
	if len(told) > 0 {
		t.Errorf("told %d times more", len(told))
	}
}
