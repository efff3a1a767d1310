package acme

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	xacme "golang.org/x/crypto/acme"

	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
)

// sign makes a request as a client would that is not held to the protocol.
func sign(t testing.TB, key crypto.Signer, alg jose.SignatureAlgorithm, kid, url, nonce string, payload any) []byte {
	t.Helper()
	signing := jose.SigningKey{Algorithm: alg, Key: key}
	if kid != "" {
		signing.Key = jose.JSONWebKey{Key: key, KeyID: kid}
	}
	s, err := jose.NewSigner(signing, &jose.SignerOptions{EmbedJWK: kid == "", ExtraHeaders: map[jose.HeaderKey]any{"url": url, "nonce": nonce}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(data)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(jws.FullSerialize())
}

// post sends a body and gives the problem's type without its prefix.
func (w *world) post(path string, body []byte, change func(*http.Request)) (problem string, status int) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "https://"+serverHost+path, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/jose+json")
	if change != nil {
		change(req)
	}
	resp, err := w.http().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var p struct {
		Type string `json:"type"`
	}
	_ = json.NewDecoder(resp.Body).Decode(&p)
	return strings.TrimPrefix(p.Type, "urn:ietf:params:acme:error:"), resp.StatusCode
}

// What strangers send: it is refused before anything is parsed, verified or written
// that costs.
func TestStrangers(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	before := len(kinds(t, w.auth.store))
	const path, url = "/acme/new-account", "https://" + serverHost + "/acme/new-account"
	ec := w.client().Key
	small, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // to be refused
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() string { return w.d.nonces.make() }
	good := func() []byte { return sign(t, ec, jose.ES256, "", url, fresh(), map[string]any{}) }
	huge := base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 9000))
	for name, tc := range map[string]struct {
		body   []byte
		change func(*http.Request)
		want   string
		status int
	}{
		"nothing":                 {nil, nil, "malformed", http.StatusBadRequest},
		"no JWS":                  {[]byte("{}"), nil, "malformed", http.StatusBadRequest},
		"compact form":            {[]byte("e30.e30.e30"), nil, "malformed", http.StatusBadRequest},
		"too long":                {bytes.Repeat([]byte("a"), maxBody+1), nil, "malformed", http.StatusRequestEntityTooLarge},
		"a small RSA key":         {sign(t, small, jose.RS256, "", url, fresh(), map[string]any{}), nil, "badPublicKey", http.StatusBadRequest},
		"a huge RSA key":          {rsaJWK(huge), nil, "badPublicKey", http.StatusBadRequest},
		"the key twice":           {twice(good()), nil, "malformed", http.StatusBadRequest},
		"a nonce of nobody":       {sign(t, ec, jose.ES256, "", url, "AAAA", map[string]any{}), nil, "badNonce", http.StatusBadRequest},
		"for another address":     {sign(t, ec, jose.ES256, "", "https://elsewhere/acme/new-account", fresh(), map[string]any{}), nil, "malformed", http.StatusBadRequest},
		"to another host":         {good(), func(r *http.Request) { r.Host = "elsewhere" }, "malformed", http.StatusMisdirectedRequest},
		"another type of content": {good(), func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, "malformed", http.StatusBadRequest},
		"another signature":       {forged(t, good()), nil, "malformed", http.StatusBadRequest},
		"a made-up account":       {sign(t, ec, jose.ES256, "https://"+serverHost+"/acme/account/x", url, fresh(), map[string]any{}), nil, "malformed", http.StatusBadRequest},
		"without a binding":       {good(), nil, "externalAccountRequired", http.StatusBadRequest},
	} {
		if problem, status := w.post(path, tc.body, tc.change); problem != tc.want || status != tc.status {
			t.Errorf("%s: %s, %d; want %s, %d", name, problem, status, tc.want, tc.status)
		}
	}
	for _, other := range []string{"/", "/acme", "/acme/", "/acme/nonsense", "/other/directory", "/acme/order/../../x", "/acme/order/x%2f..%2fy", "/acme/order/x%2fy/finalize", "/acme/new%2daccount", "//acme/new-account", "/acme//new-account"} {
		if _, status := w.post(other, good(), nil); status != http.StatusNotFound {
			t.Errorf("%s: %d", other, status)
		}
	}
	if n := len(kinds(t, w.auth.store)); n != before {
		t.Errorf("%d entries of the ledger", n-before)
	}
}

// rsaJWK is a request with an RSA key of that modulus; nothing else in it is right.
func rsaJWK(n string) []byte {
	protected := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","nonce":"A","url":"u","jwk":{"kty":"RSA","e":"AQAB","n":"` + n + `"}}`))
	return []byte(`{"protected":"` + protected + `","payload":"e30","signature":"AA"}`)
}

// twice is a request whose protected header has a second key.
func twice(body []byte) []byte {
	var f map[string]string
	_ = json.Unmarshal(body, &f)
	raw, _ := base64.RawURLEncoding.DecodeString(f["protected"])
	raw = append([]byte(`{"jwk":{"kty":"RSA","e":"AQAB","n":"AQAB"},`), raw[1:]...)
	f["protected"] = base64.RawURLEncoding.EncodeToString(raw)
	out, _ := json.Marshal(f)
	return out
}

func forged(t testing.TB, body []byte) []byte {
	t.Helper()
	var f map[string]string
	if err := json.Unmarshal(body, &f); err != nil {
		t.Fatal(err)
	}
	f["payload"] = base64.RawURLEncoding.EncodeToString([]byte(`{"contact":[]}`))
	out, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A request that somebody saw is not done a second time, by no authority, also not
// after a restart.
func TestReplay(t *testing.T) {
	a := newWorld(t, ledgertest.NewMemory(), nil)
	b := a.second()
	c := a.member()
	ctx := t.Context()
	reg, err := c.GetReg(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	key, ok := c.Key.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatal("another key")
	}
	body := sign(t, key, jose.ES256, reg.URI, "https://"+serverHost+"/acme/new-order", a.d.nonces.make(), map[string]any{"identifiers": xacme.DomainIDs("a.example.test")})
	if problem, status := a.post("/acme/new-order", body, nil); status != http.StatusCreated {
		t.Fatal(problem, status)
	}
	restarted := a.second()
	for name, w := range map[string]*world{"the same": a, "another": b, "after a restart": restarted} {
		if problem, status := w.post("/acme/new-order", body, nil); problem != "badNonce" || status != http.StatusBadRequest {
			t.Errorf("%s: %s, %d", name, problem, status)
		}
	}
	orders := 0
	for _, k := range kinds(t, a.auth.store) {
		if k == "acme order" {
			orders++
		}
	}
	if orders != 1 {
		t.Errorf("%d orders", orders)
	}
}

// A stranger who asks too much is told to wait.
func TestWait(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	w.o.Wait = func(_ context.Context, request string, from net.Addr) time.Duration {
		if request != "directory" || from.Network() != "tcp" {
			t.Errorf("%s from %s", request, from.Network())
		}
		return 1500 * time.Millisecond
	}
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+serverHost+"/acme/directory", nil))
	if rec.Code != http.StatusTooManyRequests || rec.Header().Get("Retry-After") != "2" || !strings.Contains(rec.Body.String(), "rateLimited") {
		t.Errorf("%d, %v, %s", rec.Code, rec.Header(), rec.Body)
	}
}

// An account's orders and certificates, and all accounts, are bounded.
func TestBounds(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	w.follow()
	c := w.member()
	ctx := t.Context()
	reg, err := c.GetReg(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	id := reg.URI[strings.LastIndex(reg.URI, "/")+1:]
	for name, change := range map[string]func(own, total *count){
		"open orders": func(own, _ *count) { own.open = maxOpen }, "certificates": func(own, _ *count) { own.certificates = maxCertificates },
		"orders of all": func(_, total *count) { total.orders = maxOrders }, "certificates of all": func(_, total *count) { total.certificates = maxAllCertificates },
	} {
		w.d.index.mu.Lock()
		own, total := w.d.index.counts[id], w.d.index.total
		changedOwn, changedTotal := own, total
		change(&changedOwn, &changedTotal)
		w.d.index.counts[id], w.d.index.total = changedOwn, changedTotal
		w.d.index.mu.Unlock()
		_, err := c.AuthorizeOrder(ctx, xacme.DomainIDs("a.example.test"))
		if e := new(xacme.Error); !errors.As(err, &e) || e.StatusCode != http.StatusTooManyRequests {
			t.Errorf("%s: %v", name, err)
		}
		w.d.index.mu.Lock()
		w.d.index.counts[id], w.d.index.total = own, total
		w.d.index.mu.Unlock()
	}
	for name, change := range map[string]func(){
		"of all": func() { w.d.index.total.accounts = maxAccounts }, "of one": func() { w.d.index.externals[externalID] = maxOfExternal },
	} {
		w.d.index.mu.Lock()
		w.d.index.total.accounts, w.d.index.externals[externalID] = 1, 1
		change()
		w.d.index.mu.Unlock()
		_, err = w.client().Register(ctx, w.account(), xacme.AcceptTOS)
		if e := new(xacme.Error); !errors.As(err, &e) || e.StatusCode != http.StatusTooManyRequests {
			t.Errorf("accounts %s: %v", name, err)
		}
	}
}

// FuzzInspect: whatever comes, it is refused or has one signature with a key that is
// accepted.
func FuzzInspect(f *testing.F) {
	w := newWorld(f, ledgertest.NewMemory(), nil)
	key := w.client().Key
	_, der := certificateRequest(f, &x509.CertificateRequest{DNSNames: []string{"a.example.test"}})
	for kind, payload := range map[string]any{
		"new-order": map[string]any{"identifiers": xacme.DomainIDs("a.example.test")}, "new-account": map[string]any{"contact": []string{"x"}},
		"finalize": map[string]any{"csr": base64.RawURLEncoding.EncodeToString(der)}, "revoke-cert": map[string]any{"reason": 1},
	} {
		f.Add(kind, sign(f, key, jose.ES256, "", "u", "n", payload))
	}
	f.Add("finalize", rsaJWK("AQAB"))
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		r := &request{kind: kind}
		if e := r.inspect(body); e != nil {
			if e.Status < 400 || e.Type == "" {
				t.Errorf("a problem without a status or type: %+v", e)
			}
			return
		}
		jws, err := jose.ParseSigned(string(body), []jose.SignatureAlgorithm{
			jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.EdDSA, jose.HS256, jose.HS384, jose.HS512,
		})
		if err != nil || len(jws.Signatures) != 1 {
			t.Errorf("%q is let through: %v", body, err)
		}
	})
}

// What a malicious client makes validation connect to.
func TestValidationConnectsToNobodyElse(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), func(c *Config) { c.Networks = nil })
	inner := newSite(t) // something that listens on this machine only
	w.site.at("metadata.example.test.", "169.254.169.254")
	w.site.at("six.example.test.", "::1")
	for _, url := range []string{
		"http://a.example.test/x", "http://metadata.example.test/latest", "http://six.example.test/x", "http://127.0.0.1/x", "http://[::1]/x",
		"http://[::ffff:127.0.0.1]/x", "http://0.0.0.0/x", "http://localhost/x", inner.http.URL + "/x",
	} {
		if resp, err := w.validator.forRequest(t.Context()).Get(url); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s was asked", url)
		}
	}
	if conn, err := w.validator.forRequest(t.Context()).TLSDial("tcp", "a.example.test:443", nil); err == nil {
		_ = conn.Close()
		t.Error("connected by TLS")
	}
	if w.site.seen()+inner.seen() > 0 {
		t.Error("somebody was asked")
	}
}

// Redirects do not lead elsewhere, and an answer without end is not read.
func TestValidationFollowsLittle(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	inner := newSite(t)
	inner.set("/x", func(http.ResponseWriter, *http.Request) {})
	to := func(url string) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, url, http.StatusFound) }
	}
	w.site.set("/there", func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "yes") })
	w.site.set("/once", to("http://b.example.test/there"))
	w.site.set("/port", to(inner.http.URL+"/x"))
	w.site.set("/file", to("file:///etc/passwd"))
	w.site.set("/round", to("/round"))
	w.site.set("/metadata", to("http://169.254.169.254/latest"))
	w.site.set("/long", func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(make([]byte, 1<<20)) })
	get := func(path string) (string, error) {
		resp, err := w.validator.forRequest(t.Context()).Get("http://a.example.test" + path)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	if body, err := get("/once"); err != nil || body != "yes" {
		t.Errorf("%q, %v", body, err)
	}
	for _, path := range []string{"/port", "/file", "/round", "/metadata"} {
		before := w.site.seen()
		if _, err := get(path); err == nil {
			t.Errorf("%s was followed", path)
		}
		if n := w.site.seen() - before; n > maxRedirects+1 {
			t.Errorf("%s: asked %d times", path, n)
		}
	}
	if body, err := get("/long"); err != nil || len(body) != maxAnswer {
		t.Errorf("%d bytes, %v", len(body), err)
	}
	if inner.seen() > 0 {
		t.Error("another port was asked")
	}
}

// Who has as many validations under way as he may waits, and others do not.
func TestValidationsUnderWay(t *testing.T) {
	v, err := newValidator(Default())
	if err != nil {
		t.Fatal(err)
	}
	var ends []func()
	for range maxOwnValidations {
		done, err := v.begin("a")
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, done)
	}
	if _, err := v.begin("a"); !errors.Is(err, errBusy) {
		t.Error(err)
	}
	done, err := v.begin("b")
	if err != nil {
		t.Fatal(err)
	}
	done()
	for _, done := range ends {
		done()
	}
	if _, err := v.begin("a"); err != nil || len(v.underway) != 1 || v.total != 1 {
		t.Errorf("%v, %+v", err, v)
	}
}

// A validation that finds no room fails without ending the order.
func TestBusyIsNoFailure(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	c := w.member()
	ctx := t.Context()
	o, err := c.AuthorizeOrder(ctx, xacme.DomainIDs("a.example.test"))
	if err != nil {
		t.Fatal(err)
	}
	az, err := c.GetAuthorization(ctx, o.AuthzURLs[0])
	if err != nil {
		t.Fatal(err)
	}
	full := func(n int) {
		w.validator.mu.Lock()
		defer w.validator.mu.Unlock()
		w.validator.total = n
	}
	full(maxValidations)
	if err := w.accept(c, az, "http-01"); err == nil {
		t.Error("there was room")
	}
	full(0)
	if err := w.accept(c, az, "http-01"); err != nil {
		t.Fatal(err)
	}
	if got, err := c.WaitOrder(ctx, o.URI); err != nil || got.Status != xacme.StatusReady {
		t.Errorf("%v, %v", got, err)
	}
}
