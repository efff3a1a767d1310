package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/ca/plugged"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
	"github.com/writ-mesh/writ/ca/upstream"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// foreign is an authority of somebody else's.
type foreign struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newForeign makes one below by, nil for a root, that is valid for so long.
func newForeign(t testing.TB, name string, by *foreign, life time.Duration) *foreign {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &foreign{key: key}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	if f.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *foreign) id() string { return hex.EncodeToString(f.cert.SubjectKeyId) }

// plug writes the files of an issuing authority; the key last.
func plug(t testing.TB, dir string, issuing *foreign, chain []*foreign, trusted ...*foreign) {
	t.Helper()
	certs := func(fs ...*foreign) []byte {
		var out []byte
		for _, f := range fs {
			out = append(out, root.PEM(f.cert)...)
		}
		return out
	}
	der, err := x509.MarshalPKCS8PrivateKey(issuing.key)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		plugged.RootFile: certs(trusted...), plugged.ChainFile: certs(append([]*foreign{issuing}, chain...)...),
		plugged.CertFile: certs(issuing), plugged.KeyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// rootsNow is what an operator is told.
func (h *harness) rootsNow() *capb.RootsStatus {
	h.t.Helper()
	st, err := capb.NewRootsClient(h.adminConn()).GetRoots(h.t.Context(), &capb.GetRootsRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

func (h *harness) active() string {
	h.t.Helper()
	for _, r := range h.rootsNow().GetRoots() {
		if r.GetActive() {
			return r.GetKeyId()
		}
	}
	return ""
}

func withFiles(dir string) func(*Config) {
	return func(c *Config) { c.Authority.Files = dir }
}

// TestPluggedIn: certificates are under the foreign root, come with the chain, and do
// not outlive the intermediate.
func TestPluggedIn(t *testing.T) {
	dir := t.TempDir()
	top := newForeign(t, "root", nil, 24*time.Hour)
	policy := newForeign(t, "policy", top, 20*time.Minute)
	issuing := newForeign(t, "issuing", policy, 40*time.Minute)
	other := newForeign(t, "other root", nil, 24*time.Hour)
	plug(t, dir, issuing, []*foreign{policy, top}, top, other)
	h := start(t, withFiles(dir))
	svid := h.mint(reviewsID) // which verifies it under the bundle's file
	if got := svid.Certificates; len(got) != 3 || !got[1].Equal(issuing.cert) || !got[2].Equal(policy.cert) {
		t.Errorf("the chain has %d certificates, want the intermediates and no root", len(got))
	}
	if leaf := svid.Certificates[0]; leaf.NotAfter.After(policy.cert.NotAfter) {
		t.Errorf("the certificate is valid until %s, one above it until %s", leaf.NotAfter, policy.cert.NotAfter)
	}
	if got := h.bundle().X509Authorities(); len(got) != 2 || !h.bundle().HasX509Authority(other.cert) {
		t.Errorf("the bundle has %d roots, want those of the file", len(got))
	}
	if h.active() != top.id() {
		t.Errorf("%s signs, want %s", h.active(), top.id())
	}
	// A node joins, renews and watches as with an own root.
	node := h.mint(nodeID)
	if _, err := h.as(node).Renew(t.Context(), &capb.RenewRequest{Csr: requestOf(t)}); err != nil {
		t.Error(err)
	}
	h.restart()
	if _, _, err := x509svid.Verify(svid.Certificates, h.bundle()); err != nil {
		t.Error(err)
	}
	_, err := capb.NewRootsClient(h.adminConn()).RotateRoot(t.Context(), &capb.RotateRootRequest{})
	wantCode(t, err, codes.FailedPrecondition)
	if err == nil || !strings.Contains(err.Error(), "authority.files") {
		t.Errorf("got %v, want what to do instead", err)
	}
}

func requestOf(t testing.TB) []byte {
	_, der := request(t, "")
	return der
}

// TestNewIntermediate is taken live: nobody has to restart, and the bundle stays.
func TestNewIntermediate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	top := newForeign(t, "root", nil, 24*time.Hour)
	first, second := newForeign(t, "first", top, 12*time.Hour), newForeign(t, "second", top, 12*time.Hour)
	plug(t, dir, first, nil, top)
	h := start(t, withFiles(dir))
	node := h.mint(nodeID)
	stream, err := h.as(node).WatchBundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if before.GetActiveAuthority() != first.id() {
		t.Errorf("the active authority is %s, want %s", before.GetActiveAuthority(), first.id())
	}
	plug(t, dir, second, nil, top)
	after, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if after.GetActiveAuthority() != second.id() || after.GetSequence() != before.GetSequence() {
		t.Errorf("authority %s in bundle %d, want %s in %d as before", after.GetActiveAuthority(), after.GetSequence(), second.id(), before.GetSequence())
	}
	svid := h.mint(reviewsID)
	if !svid.Certificates[1].Equal(second.cert) {
		t.Error("a new certificate is under the old intermediate")
	}
	// A certificate of the old one is still good, also after a restart.
	h.restart()
	if _, err := h.as(node).Renew(t.Context(), &capb.RenewRequest{Csr: requestOf(t)}); err != nil {
		t.Error(err)
	}
}

// TestBadFilesKeepTheOld: what is wrong is told, and issuing goes on.
func TestBadFilesKeepTheOld(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	top := newForeign(t, "root", nil, 24*time.Hour)
	good := newForeign(t, "good", top, 12*time.Hour)
	plug(t, dir, good, nil, top)
	h := start(t, withFiles(dir))
	expired := newForeign(t, "expired", top, -30*time.Second)
	plug(t, dir, expired, nil, top)
	h.eventually("the bad files are told", func() bool { return strings.Contains(h.rootsNow().GetProblem(), "expired at") })
	if p := h.rootsNow().GetProblem(); !strings.HasPrefix(p, filepath.Join(dir, plugged.CertFile)) {
		t.Errorf("the problem %q does not name the file", p)
	}
	if v := gauge(t, h, "writ_ca_authority_files_refused_seconds"); v < 1 {
		t.Errorf("the metric says %v", v)
	}
	if svid := h.mint(reviewsID); !svid.Certificates[1].Equal(good.cert) {
		t.Error("the certificate is under another intermediate than before")
	}
	plug(t, dir, good, nil, top)
	h.eventually("the good files are taken", func() bool { return h.rootsNow().GetProblem() == "" })
	if v := gauge(t, h, "writ_ca_authority_files_refused_seconds"); v != 0 {
		t.Errorf("the metric says %v", v)
	}
}

func gauge(t *testing.T, h *harness, name string) float64 {
	t.Helper()
	families, err := h.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// TestNewForeignRoot is a rotation: the new root is distributed first, signs when
// every holder has it, and the old one goes when nobody uses it.
func TestNewForeignRoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one, two := newForeign(t, "one", nil, 24*time.Hour), newForeign(t, "two", nil, 24*time.Hour)
	a, b := newForeign(t, "a", one, 12*time.Hour), newForeign(t, "b", two, 12*time.Hour)
	plug(t, dir, a, nil, one)
	h := start(t, withFiles(dir))
	node := h.mint(nodeID)
	stream, err := h.as(node).WatchBundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	plug(t, dir, b, nil, two)
	both, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(both.GetRoots()) != 2 || both.GetActiveAuthority() != a.id() || both.GetSequence() <= first.GetSequence() {
		t.Errorf("%d roots, %s signs: want both, and the old one", len(both.GetRoots()), both.GetActiveAuthority())
	}
	if svid := h.mint(reviewsID); !svid.Certificates[1].Equal(a.cert) {
		t.Error("the new root signs before everybody trusts it")
	}
	say := func(sequence uint64, authorities ...string) {
		if err := stream.Send(&capb.WatchBundleRequest{Acknowledged: sequence, Authorities: authorities}); err != nil {
			t.Fatal(err)
		}
	}
	say(both.GetSequence(), a.id())
	h.eventually("the new root signs", func() bool { return h.active() == two.id() })
	svid := h.mint(ratingsID)
	if !svid.Certificates[1].Equal(b.cert) {
		t.Error("a certificate is not under the new root")
	}
	now, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	say(now.GetSequence(), a.id())
	// The intermediate of the old root counts as the old root.
	h.eventually("the old one is held", func() bool {
		gate := h.rootsNow().GetRotation().GetGate()
		return len(gate) > 0 && strings.Contains(holders(gate), nodeID)
	})
	if len(h.rootsNow().GetRoots()) != 2 {
		t.Error("the old root was dropped while a certificate of it is in use")
	}
	h.restart() // the old key is gone: only the new set is there
	if h.active() != two.id() {
		t.Errorf("%s signs after a restart", h.active())
	}
}

func holders(gate []*capb.Hold) string {
	var out strings.Builder
	for _, h := range gate {
		out.WriteString(h.GetHolder() + " ")
	}
	return out.String()
}

// TestRestartInTheMiddle: between a set and its root's signing the authority is
// started again, and the key that signs is gone.
func TestRestartInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	one, two := newForeign(t, "one", nil, 24*time.Hour), newForeign(t, "two", nil, 24*time.Hour)
	a, b := newForeign(t, "a", one, 12*time.Hour), newForeign(t, "b", two, 12*time.Hour)
	plug(t, dir, a, nil, one)
	h := start(t, withFiles(dir))
	h.mint(nodeID) // holds the gate: it is not connected
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}

	plug(t, dir, b, nil, two)
	err := h.refused()
	if want := "which nobody trusts yet"; err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("a root that nobody has heard of: got %v, want %q", err, want)
	}

	plug(t, dir, a, nil, one, two)
	h.run()
	h.eventually("both are trusted", func() bool { return len(h.bundle().X509Authorities()) == 2 })
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	plug(t, dir, b, nil, two)
	h.run()
	if h.active() != two.id() {
		t.Errorf("%s signs, want %s", h.active(), two.id())
	}
	h.mint(reviewsID)
}

// refused starts an authority that cannot start.
func (h *harness) refused() error {
	ctx, cancel := context.WithTimeout(h.t.Context(), testBudget)
	defer cancel()
	return Run(ctx, h.config, newRuntime())
}

// TestFromOwnRootToPlugged: an authority with a root of its own goes over to
// somebody else's by a rotation.
func TestFromOwnRootToPlugged(t *testing.T) {
	h := start(t, nil)
	own := h.active()
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	top := newForeign(t, "root", nil, 24*time.Hour)
	plug(t, dir, newForeign(t, "issuing", top, 12*time.Hour), nil, top)
	h.config.Authority.Files = dir
	h.run()
	h.eventually("the own root is dropped", func() bool {
		st := h.rootsNow()
		return len(st.GetRoots()) == 1 && st.GetRoots()[0].GetKeyId() == top.id()
	})
	if own == top.id() {
		t.Fatal("the test says nothing")
	}
	h.mint(reviewsID)
	if _, err := os.Stat(filepath.Join(h.config.State, root.KeyFile)); err == nil {
		t.Error("the key of the dropped root is still there")
	}
	h.restart()
	h.mint(reviewsID)
}

// TestBadFilesAtStart: the error names the file.
func TestBadFilesAtStart(t *testing.T) {
	dir := t.TempDir()
	top := newForeign(t, "root", nil, time.Hour)
	plug(t, dir, newForeign(t, "issuing", top, time.Hour), nil, newForeign(t, "other", nil, time.Hour))
	h := &harness{t: t, config: DefaultConfig()}
	h.config.TrustDomain, h.config.State, h.config.Authority.Files = td.Name(), filepath.Join(dir, "state"), dir
	h.config.Admin = "unix://" + filepath.Join(dir, "admin.sock")
	if err := h.refused(); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, plugged.RootFile)) {
		t.Errorf("got %v", err)
	}
}

// TestTakeRefuses: a third root while a rotation is under way changes nothing.
func TestTakeRefuses(t *testing.T) {
	s := roots.First(roots.Authority{KeyID: "one", Certificate: []byte("1")})
	s, err := s.Begin(roots.Authority{KeyID: "two", Certificate: []byte("2")}, "", roots.How{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{now: time.Now}
	top := newForeign(t, "three", nil, time.Hour)
	set, err := plugged.New([]*x509.Certificate{top.cert}, top.key, []*x509.Certificate{top.cert}, td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	o, err := newOutside(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.toward(o, s, &event{})
	if err == nil || !strings.Contains(err.Error(), "under way") || !bytes.Equal(got.Authorities[0].Certificate, []byte("1")) {
		t.Errorf("got %v", err)
	}
}

func TestAuthorityConfig(t *testing.T) {
	const key = "pkcs11:module-path=/m.so;token=writ;object=root"
	up := upstream.Config{URL: "https://ca:9000", RootFile: "r", Provisioner: "p", KeyFile: "k", TTL: upstream.DefaultTTL}
	for name, tc := range map[string]struct {
		c    AuthorityConfig
		want string
	}{
		"own":                {defaultAuthority(), ""},
		"files with kms":     {AuthorityConfig{Files: "d", KMS: key, PINFile: "p", Upstream: upstream.Config{TTL: upstream.DefaultTTL}}, ""},
		"upstream":           {AuthorityConfig{Upstream: up}, ""},
		"upstream and files": {AuthorityConfig{Files: "d", Upstream: up}, "leave authority.files and authority.kms out"},
		"upstream and kms":   {AuthorityConfig{KMS: key, Upstream: up}, "leave authority.files and authority.kms out"},
		"PIN without kms":    {AuthorityConfig{PINFile: "p"}, "authority.pin_file"},
		"no URI":             {AuthorityConfig{KMS: "root"}, "authority.kms"},
		"half an upstream":   {AuthorityConfig{Upstream: upstream.Config{URL: "https://ca", TTL: upstream.DefaultTTL}}, "authority.upstream: root_file"},
	} {
		err := tc.c.validate()
		if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}
