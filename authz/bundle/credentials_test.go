package bundle

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/plugins/rest"

	"github.com/writ-mesh/writ/internal/pkitest"
)

// guardedServer is a server by TLS that wants to be shown a token or a certificate, and
// gives tokens itself.
type guardedServer struct {
	*httptest.Server
	mu sync.Mutex
	// token is what is wanted now; empty for nothing.
	token string
	// secret is the client's, asked counts calls for tokens; answer replaces what is
	// answered to them.
	secret string
	asked  int
	answer string
	lasts  int
	// callers are the serial numbers of the certificates that came.
	callers []string
}

func newGuardedServer(t *testing.T, callers *x509.CertPool) *guardedServer {
	t.Helper()
	g := &guardedServer{lasts: 3600}
	g.Server = httptest.NewUnstartedServer(g)
	if callers != nil {
		g.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: callers, MinVersion: tls.VersionTLS12}
	}
	g.StartTLS()
	t.Cleanup(g.Close)
	return g
}

func (g *guardedServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.URL.Path == "/token" {
		g.asked++
		id, secret, _ := r.BasicAuth()
		switch {
		case g.answer == "redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		case g.answer != "":
			_, _ = io.WriteString(w, g.answer)
		case id != "shop" || secret != g.secret || r.FormValue("grant_type") != "client_credentials" || r.FormValue("scope") != "a b":
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error": "invalid_client"}`)
		default:
			g.token = fmt.Sprintf("issued-%d", g.asked)
			_, _ = fmt.Fprintf(w, `{"access_token": %q, "token_type": "Bearer", "expires_in": %d}`, g.token, g.lasts)
		}
		return
	}
	for _, c := range r.TLS.PeerCertificates {
		g.callers = append(g.callers, c.SerialNumber.String())
	}
	if g.token != "" && r.Header.Get("Authorization") != "Bearer "+g.token {
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func (g *guardedServer) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// credentialFolder has the roots of a server.
func credentialFolder(t *testing.T, g *guardedServer) string {
	t.Helper()
	folder := t.TempDir()
	put(t, folder, "roots.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.Certificate().Raw})))
	return folder
}

func put(t *testing.T, folder, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask shows a server the credentials as OPA does, and gives the status.
func (p *credentialed) ask(t *testing.T, to string) (int, error) {
	t.Helper()
	client, err := p.NewClient(rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Prepare(req); err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func (p *credentialed) wants(t *testing.T, to string, status int) {
	t.Helper()
	if got, err := p.ask(t, to); got != status || err != nil {
		t.Errorf("%d, %v, want %d", got, err, status)
	}
}

// TestBearerCredentials: a token that is replaced in its file counts from the next
// request on.
func TestBearerCredentials(t *testing.T) {
	g := newGuardedServer(t, nil)
	folder := credentialFolder(t, g)
	p := &credentialed{Credentials: Credentials{Folder: folder, TokenFile: "token", CAFile: "roots.pem"}}
	g.token = "one"
	put(t, folder, "token", "one\n")
	p.wants(t, g.URL, http.StatusOK)
	g.set(func() { g.token = "two" })
	p.wants(t, g.URL, http.StatusUnauthorized)
	put(t, folder, "token", "two")
	p.wants(t, g.URL, http.StatusOK)
	if err := os.Remove(filepath.Join(folder, "roots.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ask(t, g.URL); err == nil || !strings.Contains(err.Error(), "roots.pem") {
		t.Errorf("without the roots: %v", err)
	}
}

// TestCertificateCredentials: so does a certificate, also on connections that are kept.
func TestCertificateCredentials(t *testing.T) {
	root := pkitest.NewRoot(t, "")
	g := newGuardedServer(t, root.Pool())
	folder := credentialFolder(t, g)
	p := &credentialed{Credentials: Credentials{Folder: folder, CertificateFile: "c.pem", KeyFile: "k.pem", CAFile: "roots.pem"}}
	var serials []string
	for range 2 {
		leaf := pkitest.Leaf("", time.Hour)
		cert, key := root.Issue(t, leaf)
		put(t, folder, "c.pem", string(cert))
		put(t, folder, "k.pem", string(key))
		serials = append(serials, leaf.SerialNumber.String(), leaf.SerialNumber.String())
		p.wants(t, g.URL, http.StatusOK)
		p.wants(t, g.URL, http.StatusOK)
	}
	if fmt.Sprint(g.callers) != fmt.Sprint(serials) {
		t.Errorf("certificates %v came, want %v", g.callers, serials)
	}
	cert, _ := root.Issue(t, pkitest.Leaf("", time.Hour))
	put(t, folder, "c.pem", string(cert)) // the key is another one's
	if _, err := p.ask(t, g.URL); err == nil || !strings.Contains(err.Error(), "k.pem") {
		t.Errorf("a key of another certificate: %v", err)
	}
}

// TestOAuth2Credentials: a token is asked for once while it is good, anew when the
// secret has changed or the token was withdrawn, and nothing but a token is taken.
func TestOAuth2Credentials(t *testing.T) {
	g := newGuardedServer(t, nil)
	folder := credentialFolder(t, g)
	p := &credentialed{Credentials: Credentials{Folder: folder, ClientFile: "client.json", CAFile: "roots.pem", Scopes: []string{"a", "b"}}}
	client := func(secret string) {
		put(t, folder, "client.json", fmt.Sprintf(`{"token_url": "%s/token", "client_id": "shop", "client_secret": %q}`, g.URL, secret))
		g.set(func() { g.secret = secret })
	}
	client("s1")
	p.wants(t, g.URL, http.StatusOK)
	p.wants(t, g.URL, http.StatusOK)
	if g.asked != 1 {
		t.Errorf("asked for %d tokens", g.asked)
	}
	client("s2")
	p.wants(t, g.URL, http.StatusOK)
	g.set(func() { g.token = "withdrawn" })
	p.wants(t, g.URL, http.StatusUnauthorized)
	p.wants(t, g.URL, http.StatusOK)
	if g.asked != 3 {
		t.Errorf("asked for %d tokens, want 3", g.asked)
	}
	for _, answer := range []string{
		"redirect", "{", `{"access_token": "a b", "token_type": "bearer"}`, `{"access_token": "", "token_type": "bearer"}`, `{"access_token": "a", "token_type": "mac"}`,
		`{"access_token": "a", "token_type": "bearer", "expires_in": -1}`, `{"access_token": "` + strings.Repeat("a", 100<<10) + `", "token_type": "bearer"}`,
	} {
		p.issued = ""
		g.set(func() { g.answer = answer })
		if _, err := p.ask(t, g.URL); err == nil || strings.Contains(err.Error(), "s2") {
			t.Errorf("%.60s: %v", answer, err)
		}
	}
	g.set(func() { g.answer, g.secret = "", "another" })
	if _, err := p.ask(t, g.URL); err == nil || !strings.Contains(err.Error(), "invalid_client") || strings.Contains(err.Error(), "s2") {
		t.Errorf("a wrong secret: %v", err)
	}
	for _, text := range []string{"", "s3cret", `{"client_id": "shop", "client_secret": "s3cret"}`, `{"token_url": "http://a.example/", "client_id": "shop", "client_secret": "s3cret"}`, `{"token_url": "https://a.example/", "client_id": "shop", "client_secret": "s3cret", "more": 1}`} {
		put(t, folder, "client.json", text)
		if _, err := p.ask(t, g.URL); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestCredentialFiles: what is not a file of the folder, for its user alone, is not
// shown to anybody.
func TestCredentialFiles(t *testing.T) {
	g := newGuardedServer(t, nil)
	folder, outside := credentialFolder(t, g), t.TempDir()
	put(t, outside, "secret", "hidden")
	put(t, folder, "open", "hidden")
	if err := os.Chmod(filepath.Join(folder, "open"), 0o640); err != nil { //nolint:gosec // that is what is refused
		t.Fatal(err)
	}
	put(t, folder, "large", strings.Repeat("a", 65<<10))
	put(t, folder, "lines", "hid\nden")
	put(t, folder, "empty", "\n")
	put(t, folder, "client.json", `{"token_url":"https://a.example/","client_id":"a","client_secret":"hidden"}`)
	if err := os.Symlink(filepath.Join(outside, "secret"), filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(folder, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"open": "chmod 600", "large": "more than", "lines": "no token", "empty": "no token", "client.json": "no token", "link": "escapes", "pipe": "no file", "none": "no such file",
		"../" + filepath.Base(outside) + "/secret": "escapes", ".": "",
	} {
		p := &credentialed{Credentials: Credentials{Folder: folder, TokenFile: name, CAFile: "roots.pem"}}
		if _, err := p.ask(t, g.URL); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hid") {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

// TestCredentialsCheck: what can never be used is refused when the policy comes.
func TestCredentialsCheck(t *testing.T) {
	for name, c := range map[string]struct {
		url string
		c   Credentials
		err string
	}{
		"nothing":          {"http://a.example/b", Credentials{}, ""},
		"a token":          {"https://a.example/b", Credentials{Folder: "/f", TokenFile: "t"}, ""},
		"of a registry":    {"oci://a.example/b:1", Credentials{Folder: "/f", TokenFile: "t"}, ""},
		"roots alone":      {"https://a.example/b", Credentials{Folder: "/f", CAFile: "t"}, ""},
		"in plain text":    {"http://a.example/b", Credentials{Folder: "/f", TokenFile: "t"}, "https"},
		"without a folder": {"https://a.example/b", Credentials{TokenFile: "t"}, "no folder"},
		"two kinds":        {"https://a.example/b", Credentials{Folder: "/f", TokenFile: "t", ClientFile: "c"}, "not several"},
		"half a pair":      {"https://a.example/b", Credentials{Folder: "/f", CertificateFile: "t"}, "needs its key"},
		"another folder":   {"https://a.example/b", Credentials{Folder: "/f", TokenFile: "../b.example/t"}, "no name of a file"},
		"a path":           {"https://a.example/b", Credentials{Folder: "/f", TokenFile: "/etc/passwd"}, "no name of a file"},
	} {
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.c.check(u); (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
	}
}
