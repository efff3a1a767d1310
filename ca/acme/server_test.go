package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/certificates/cas/apiv1"
	xacme "golang.org/x/crypto/acme"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
)

// A real client gets certificates by each challenge. They have the names of the
// order and nothing by which anybody in the mesh would take them for a peer's.
func TestClientGetsCertificates(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	c := w.member()
	for kind, names := range map[string][]string{
		"http-01":     {"a.example.test", "b.example.test"},
		"tls-alpn-01": {"c.example.test"},
		"dns-01":      {"*.d.example.test", "e.example.test"},
	} {
		chain, key, err := w.obtain(c, kind, names...)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		leaf := chain[0]
		if !slices.Equal(leaf.DNSNames, names) || len(leaf.URIs)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || leaf.IsCA {
			t.Errorf("%s: names %v, URIs %v", kind, leaf.DNSNames, leaf.URIs)
		}
		if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
			t.Errorf("%s: extended key usage %v", kind, leaf.ExtKeyUsage)
		}
		if !key.PublicKey.Equal(leaf.PublicKey) {
			t.Errorf("%s: another key", kind)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: w.auth.root.Pool(), DNSName: strings.Replace(names[0], "*", "x", 1)}); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// Each certificate costs three entries of the ledger, and what reads costs none.
func TestEntriesOfACertificate(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	c := w.member()
	before := kinds(t, w.auth.store)
	if _, _, err := w.obtain(c, "http-01", "a.example.test"); err != nil {
		t.Fatal(err)
	}
	got := kinds(t, w.auth.store)[len(before):]
	if want := []string{"acme order", "acme order ready", "issued"}; !slices.Equal(got, want) {
		t.Errorf("entries %v, want %v", got, want)
	}
}

func kinds(t testing.TB, store ledger.Log) (out []string) {
	t.Helper()
	err := store.Each(t.Context(), 0, func(r ledger.Record) error {
		e, err := r.Entry()
		out = append(out, strings.TrimSpace(string(e.Kind)+" "+e.Detail["what"]))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Of several authorities over one ledger each goes on with what another one began.
func TestClientOfTwoAuthorities(t *testing.T) {
	a := newWorld(t, ledgertest.NewMemory(), nil)
	b := a.second()
	c := a.member()
	o, err := a.ready(c, "http-01", "a.example.test")
	if err != nil {
		t.Fatal(err)
	}
	c.HTTPClient = b.http() // with nonces of the other one
	_, der := certificateRequest(t, &x509.CertificateRequest{DNSNames: []string{"a.example.test"}})
	_, certURL, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, der, true)
	if err != nil {
		t.Fatal(err)
	}
	c.HTTPClient = a.http()
	if _, err := c.FetchCert(t.Context(), certURL, true); err != nil {
		t.Error(err)
	}
	if n := a.auth.count(); n != 1 {
		t.Errorf("%d certificates", n)
	}
}

// What a client may not have.
func TestWhatIsRefused(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), func(c *Config) { c.Names = append(c.Names, "www.example.com") })
	c := w.member()
	ctx := t.Context()
	for name, tc := range map[string]struct {
		ids  []xacme.AuthzID
		kind string
	}{
		"a name of somebody else":  {xacme.DomainIDs("www.example.org"), "rejectedIdentifier"},
		"below a name, not it":     {xacme.DomainIDs("a.www.example.com"), "rejectedIdentifier"},
		"above what is allowed":    {xacme.DomainIDs("example.test"), "rejectedIdentifier"},
		"one of two names":         {xacme.DomainIDs("a.example.test", "www.example.org"), "rejectedIdentifier"},
		"a wildcard above":         {xacme.DomainIDs("*.test"), "rejectedIdentifier"},
		"an address":               {xacme.IPIDs("127.0.0.1"), "unsupportedIdentifier"},
		"an address as a name":     {xacme.DomainIDs("127.0.0.1"), "rejectedIdentifier"},
		"a name twice":             {xacme.DomainIDs("a.example.test", "a.example.test"), "malformed"},
		"something of smallstep's": {[]xacme.AuthzID{{Type: "permanent-identifier", Value: "x"}}, "unsupportedIdentifier"},
		"a SPIFFE ID as a name":    {xacme.DomainIDs("spiffe://example.test/ns/a/sa/b"), "malformed"},
		"too many names":           {xacme.DomainIDs(slices.Repeat([]string{"a.example.test"}, maxNames+1)...), "rejectedIdentifier"},
	} {
		_, err := c.AuthorizeOrder(ctx, tc.ids)
		if e := new(xacme.Error); !errors.As(err, &e) || !strings.HasSuffix(e.ProblemType, ":"+tc.kind) {
			t.Errorf("%s: %v, want %s", name, err, tc.kind)
		}
	}
	if n := len(w.d.index.orders("")); n != 0 {
		t.Errorf("%d orders", n)
	}
	if !slices.Contains(w.auth.refused, "www.example.org") {
		t.Errorf("the authority heard of %v", w.auth.refused)
	}
}

// What was allowed when the order began has to be allowed when it is fulfilled.
func TestNamesTakenOut(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	c := w.member()
	o, err := w.ready(c, "http-01", "a.example.test")
	if err != nil {
		t.Fatal(err)
	}
	w.config.Names = []string{"b.example.test"}
	w.start(w.auth)
	c.HTTPClient = w.http()
	_, der := certificateRequest(t, &x509.CertificateRequest{DNSNames: []string{"a.example.test"}})
	_, _, err = c.CreateOrderCert(t.Context(), o.FinalizeURL, der, true)
	wantProblem(t, err, "rejectedIdentifier", http.StatusBadRequest)
	if n := w.auth.count(); n != 0 {
		t.Errorf("%d certificates", n)
	}
}

// Of two who do the same at the same moment, by one nonce or for one order, one does
// it, whoever they are.
func TestOnce(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	r := &request{nonce: "x"}
	for i := range 2 {
		_, err := w.d.commit(withRequest(t.Context(), &request{nonce: r.nonce}), ledger.Change{Entry: w.d.entry("test", "", nil)})
		if (err == nil) != (i == 0) || i > 0 && !strings.Contains(err.Error(), "nonce") {
			t.Errorf("%d: %v", i, err)
		}
	}
	c := w.member()
	o, err := w.ready(c, "http-01", "a.example.test")
	if err != nil {
		t.Fatal(err)
	}
	r = &request{}
	id := o.URI[strings.LastIndex(o.URI, "/")+1:]
	if _, _, err := w.d.order(withRequest(t.Context(), r), id); err != nil {
		t.Fatal(err)
	}
	r.account = r.order.Account
	for i := range 2 {
		_, err := w.auth.Issue(t.Context(), Order{
			Names: []string{"a.example.test"}, PublicKey: c.Key.Public(), TTL: time.Hour,
			Also: func(chain []*x509.Certificate) (ledger.Change, error) { return w.d.fulfilled(r, chain) },
		})
		if (err == nil) != (i == 0) || i > 0 && !errors.Is(err, ledger.ErrConflict) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// What smallstep's code would have signed is compared with the order once more.
func TestTemplatesForMore(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	c := w.member()
	o, err := w.ready(c, "http-01", "a.example.test")
	if err != nil {
		t.Fatal(err)
	}
	r := new(request)
	ctx := withRequest(t.Context(), r)
	if _, _, err := w.d.order(ctx, o.URI[strings.LastIndex(o.URI, "/")+1:]); err != nil {
		t.Fatal(err)
	}
	r.account, r.external = r.order.Account, externalID
	workload, err := url.Parse("spiffe://example.test/ns/a/sa/b")
	if err != nil {
		t.Fatal(err)
	}
	own := []string{"a.example.test"}
	sign := func(template *x509.Certificate, known bool) error {
		template.PublicKey = c.Key.Public()
		if known {
			w.issuer.signing[template] = ctx
		}
		_, err := w.issuer.CreateCertificate(&apiv1.CreateCertificateRequest{Template: template})
		return err
	}
	for name, template := range map[string]*x509.Certificate{
		"another name": {DNSNames: []string{"b.example.test"}}, "one more": {DNSNames: []string{"a.example.test", "b.example.test"}}, "none": {},
		"a SPIFFE ID": {DNSNames: own, URIs: []*url.URL{workload}}, "an address": {DNSNames: own, IPAddresses: []net.IP{{127, 0, 0, 1}}},
		"mail": {DNSNames: own, EmailAddresses: []string{"a@example.test"}}, "an authority": {DNSNames: own, IsCA: true},
	} {
		if err := sign(template, true); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if err := sign(&x509.Certificate{DNSNames: own}, false); err == nil {
		t.Error("signed for no order")
	}
	r.account = "another"
	if err := sign(&x509.Certificate{DNSNames: own}, true); err == nil {
		t.Error("signed for another account")
	}
	r.account = r.order.Account
	if err := sign(&x509.Certificate{DNSNames: own}, true); err != nil {
		t.Error(err)
	}
}

// A certificate request that is not for the order, or for more than names.
func TestRequestsForMore(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	c := w.member()
	workload, err := url.Parse("spiffe://example.test/ns/a/sa/b")
	if err != nil {
		t.Fatal(err)
	}
	own := []string{"a.example.test"}
	for name, template := range map[string]*x509.CertificateRequest{
		"a SPIFFE ID too":   {DNSNames: own, URIs: []*url.URL{workload}},
		"another name":      {DNSNames: []string{"b.example.test"}},
		"one more name":     {DNSNames: []string{"a.example.test", "b.example.test"}},
		"a mail address":    {DNSNames: own, EmailAddresses: []string{"a@example.test"}},
		"no name":           {},
		"another name's CN": {DNSNames: own, Subject: subjectOf("b.example.test")},
	} {
		o, err := w.ready(c, "http-01", own...)
		if err != nil {
			t.Fatal(err)
		}
		_, der := certificateRequest(t, template)
		_, _, err = c.CreateOrderCert(t.Context(), o.FinalizeURL, der, true)
		if e := new(xacme.Error); !errors.As(err, &e) || !strings.HasSuffix(e.ProblemType, ":badCSR") {
			t.Errorf("%s: %v, want badCSR", name, err)
		}
	}
	o, err := w.ready(c, "http-01", own...)
	if err != nil {
		t.Fatal(err)
	}
	odd, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: own}, odd)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = c.CreateOrderCert(t.Context(), o.FinalizeURL, der, true)
	wantProblem(t, err, "badCSR", http.StatusBadRequest)
	if n := w.auth.count(); n != 0 {
		t.Errorf("%d certificates", n)
	}
}

// An account has its own orders and certificates, and no others'.
func TestAccountsAreApart(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	owner, thief := w.member(), w.member()
	o, err := w.ready(owner, "http-01", "a.example.test")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	_, der := certificateRequest(t, &x509.CertificateRequest{DNSNames: []string{"a.example.test"}})
	_, err = thief.GetOrder(ctx, o.URI)
	wantProblem(t, err, "unauthorized", http.StatusUnauthorized)
	_, err = thief.GetAuthorization(ctx, o.AuthzURLs[0])
	wantProblem(t, err, "unauthorized", http.StatusUnauthorized)
	_, _, err = thief.CreateOrderCert(ctx, o.FinalizeURL, der, true)
	wantProblem(t, err, "unauthorized", http.StatusUnauthorized)
	chain, certURL, err := owner.CreateOrderCert(ctx, o.FinalizeURL, der, true)
	if err != nil {
		t.Fatal(err)
	}
	_, err = thief.FetchCert(ctx, certURL, true)
	wantProblem(t, err, "unauthorized", http.StatusUnauthorized)
	wantProblem(t, thief.RevokeCert(ctx, nil, chain[0], xacme.CRLReasonKeyCompromise), "unauthorized", http.StatusForbidden)
	if err := owner.RevokeCert(ctx, nil, chain[0], xacme.CRLReasonKeyCompromise); err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if reason, ok := w.auth.revoked[serialOf(leaf)]; !ok || reason != 1 {
		t.Errorf("revoked %v", w.auth.revoked)
	}
	// The client takes "already revoked" for success.
	if err := owner.RevokeCert(ctx, nil, chain[0], xacme.CRLReasonUnspecified); err != nil || w.auth.revokes != 1 {
		t.Errorf("revoked %d times: %v", w.auth.revokes, err)
	}
}

// Whoever has a certificate's key may revoke it without the account, and nobody with
// another key.
func TestRevokedByItsKey(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	chain, key, err := w.obtain(w.member(), "http-01", "a.example.test")
	if err != nil {
		t.Fatal(err)
	}
	stranger, other := w.client(), w.client()
	err = stranger.RevokeCert(t.Context(), other.Key, chain[0].Raw, xacme.CRLReasonUnspecified)
	wantProblem(t, err, "unauthorized", http.StatusForbidden)
	err = stranger.RevokeCert(t.Context(), key, chain[0].Raw, xacme.CRLReasonCode(8))
	wantProblem(t, err, "badRevocationReason", http.StatusBadRequest)
	if err := stranger.RevokeCert(t.Context(), key, chain[0].Raw, xacme.CRLReasonSuperseded); err != nil {
		t.Fatal(err)
	}
	if len(w.auth.revoked) != 1 {
		t.Errorf("revoked %v", w.auth.revoked)
	}
}

// An external account is needed, its key proves it, its names are all that its
// accounts may have, and they end with it.
func TestExternalAccounts(t *testing.T) {
	store := ledgertest.NewMemory()
	w := newWorld(t, store, func(c *Config) {
		c.ExternalAccounts[0].Names = []string{"web.example.test"}
	})
	ctx := t.Context()
	_, err := w.client().Register(ctx, &xacme.Account{}, xacme.AcceptTOS)
	wantProblem(t, err, "externalAccountRequired", http.StatusBadRequest)
	for _, b := range []*xacme.ExternalAccountBinding{{KID: externalID, Key: make([]byte, 32)}, {KID: "nobody", Key: w.key}} {
		_, err := w.client().Register(ctx, &xacme.Account{ExternalAccountBinding: b}, xacme.AcceptTOS)
		wantProblem(t, err, "unauthorized", http.StatusUnauthorized)
	}
	c := w.member()
	if _, _, err := w.obtain(c, "http-01", "web.example.test"); err != nil {
		t.Fatal(err)
	}
	_, err = c.AuthorizeOrder(ctx, xacme.DomainIDs("other.example.test"))
	wantProblem(t, err, "rejectedIdentifier", http.StatusBadRequest)
	begun, err := w.ready(c, "http-01", "web.example.test")
	if err != nil {
		t.Fatal(err)
	}
	// Another key takes its place.
	w.config.ExternalAccounts[0].ID = "later"
	w.start(w.auth)
	c.HTTPClient = w.http()
	_, err = c.AuthorizeOrder(ctx, xacme.DomainIDs("web.example.test"))
	wantProblem(t, err, "unauthorized", http.StatusUnauthorized)
	_, der := certificateRequest(t, &x509.CertificateRequest{DNSNames: []string{"web.example.test"}})
	_, _, err = c.CreateOrderCert(ctx, begun.FinalizeURL, der, true)
	wantProblem(t, err, "unauthorized", http.StatusUnauthorized)
	// The client's key can make an account again with the new one.
	again := &xacme.Client{Key: c.Key, DirectoryURL: c.DirectoryURL, HTTPClient: w.http(), RetryBackoff: c.RetryBackoff}
	if _, err := again.Register(ctx, &xacme.Account{ExternalAccountBinding: &xacme.ExternalAccountBinding{KID: "later", Key: w.key}}, xacme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.obtain(again, "http-01", "web.example.test"); err != nil {
		t.Error(err)
	}
}

// Without external accounts everybody makes one, and gets what is allowed.
func TestOpenToAll(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), func(c *Config) { c.RequireExternalAccount, c.ExternalAccounts = false, nil })
	c := w.client()
	a, err := c.Register(t.Context(), &xacme.Account{Contact: []string{"mailto:a@example.test"}}, xacme.AcceptTOS)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.obtain(c, "http-01", "a.example.test"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UpdateReg(t.Context(), &xacme.Account{URI: a.URI, Contact: []string{strings.Repeat("x", maxContact+1)}}); err == nil {
		t.Error("a contact without end")
	}
	if _, err := c.UpdateReg(t.Context(), &xacme.Account{URI: a.URI, Contact: []string{"mailto:b@example.test"}}); err != nil {
		t.Error(err)
	}
	_, err = c.UpdateReg(t.Context(), &xacme.Account{URI: a.URI, Contact: []string{"mailto:c@example.test"}})
	wantProblem(t, err, "rateLimited", http.StatusTooManyRequests)
	if err := c.DeactivateReg(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = c.AuthorizeOrder(t.Context(), xacme.DomainIDs("a.example.test"))
	wantProblem(t, err, "unauthorized", http.StatusUnauthorized)
}

// While the ledger is away nothing is issued, and it goes on where it was.
func TestLedgerAway(t *testing.T) {
	store := &awayStore{Memory: ledgertest.NewMemory()}
	w := newWorld(t, store, nil)
	c := w.member()
	o, err := w.ready(c, "http-01", "a.example.test")
	if err != nil {
		t.Fatal(err)
	}
	store.set(true)
	_, der := certificateRequest(t, &x509.CertificateRequest{DNSNames: []string{"a.example.test"}})
	if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, der, true); err == nil {
		t.Error("a certificate without a record")
	}
	_, err = c.AuthorizeOrder(t.Context(), xacme.DomainIDs("b.example.test"))
	wantProblem(t, err, "serverInternal", http.StatusServiceUnavailable)
	if n := w.auth.count(); n != 0 {
		t.Errorf("%d certificates", n)
	}
	store.set(false)
	if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, der, true); err != nil {
		t.Error(err)
	}
}

// A challenge has one validation, and a failed one ends the order.
func TestFailedChallenge(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	c := w.member()
	ctx := t.Context()
	for _, kind := range []string{"http-01", "dns-01", "tls-alpn-01"} {
		o, err := c.AuthorizeOrder(ctx, xacme.DomainIDs("a.example.test"))
		if err != nil {
			t.Fatal(err)
		}
		az, err := c.GetAuthorization(ctx, o.AuthzURLs[0])
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(az.Challenges, func(ch *xacme.Challenge) bool { return ch.Type == kind })
		if _, err := c.Accept(ctx, az.Challenges[i]); err != nil {
			t.Fatal(err)
		}
		w.site.fulfil(t, c, "a.example.test", az.Challenges[i])
		if _, err := c.Accept(ctx, az.Challenges[i]); err != nil {
			t.Fatal(err)
		}
		got, err := c.GetOrder(ctx, o.URI)
		if err != nil || got.Status != xacme.StatusInvalid {
			t.Errorf("%s: %v, %v", kind, got, err)
		}
		az, err = c.GetAuthorization(ctx, o.AuthzURLs[0])
		if err != nil || az.Status != xacme.StatusInvalid {
			t.Errorf("%s: %v, %v", kind, az, err)
		}
	}
}

func subjectOf(name string) pkix.Name { return pkix.Name{CommonName: name} }
