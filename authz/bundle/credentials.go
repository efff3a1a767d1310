package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/open-policy-agent/opa/v1/plugins/rest"

	"github.com/writ-mesh/writ/internal/pemroots"
)

// Credentials say by what a server of bundles is shown who asks: a bearer token, a
// certificate, or a token of an OAuth2 server by a client's secret. All are files, read
// whenever they are needed, so that one that is replaced counts from the next request
// on. The zero value shows nothing.
type Credentials struct {
	// Folder has the files for one host. Nothing outside of it is ever read.
	Folder string
	// TokenFile has a bearer token.
	TokenFile string
	// CertificateFile and KeyFile are PEM.
	CertificateFile, KeyFile string
	// ClientFile is an oauthClient in JSON; Scopes are asked for.
	ClientFile string
	Scopes     []string
	// CAFile has PEM roots in place of the system's, for the server of tokens too.
	CAFile string
}

// shows says whether there is anything to show.
func (c *Credentials) shows() bool {
	return c.TokenFile != "" || c.CertificateFile != "" || c.KeyFile != "" || c.ClientFile != ""
}

// check refuses what can never be used.
func (c *Credentials) check(u *url.URL) error {
	kinds := 0
	for _, given := range []bool{c.TokenFile != "", c.CertificateFile != "" || c.KeyFile != "", c.ClientFile != ""} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return errors.New("credentials: give a token, a certificate or an OAuth2 client, not several")
	case (c.CertificateFile == "") != (c.KeyFile == ""):
		return errors.New("credentials: a certificate needs its key")
	case kinds > 0 && u.Scheme == "http":
		return errors.New("credentials: whoever is on the way could read them: use https")
	case c.Folder == "" && (kinds > 0 || c.CAFile != ""):
		return errors.New("credentials: this authz has no folder for them (bundle_credentials, or state)")
	}
	for _, name := range []string{c.TokenFile, c.CertificateFile, c.KeyFile, c.ClientFile, c.CAFile} {
		if name != "" && !filepath.IsLocal(name) {
			return fmt.Errorf("credentials: %q is no name of a file in the folder of its host", name)
		}
	}
	return nil
}

// maxCredential bounds a file with a secret, in bytes; maxShown a token on its way.
const (
	maxCredential = 64 << 10
	maxShown      = 16 << 10
)

// read reads a file of the folder. A secret is for one user alone.
func (c *Credentials) read(name string, secret bool) ([]byte, error) {
	folder, err := os.OpenRoot(c.Folder)
	if err != nil {
		return nil, fmt.Errorf("the folder of the credentials: %w", err)
	}
	defer folder.Close()
	f, err := folder.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe does not hold it up
	if err != nil {
		return nil, fmt.Errorf("credentials in %s: %w", c.Folder, err)
	}
	defer f.Close()
	path := filepath.Join(c.Folder, name)
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file", path)
	case secret && info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s has mode %#o and is a secret: chmod 600", path, info.Mode().Perm())
	}
	limit := int64(maxCredential)
	if !secret {
		limit = 1 << 20
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return data, nil
}

// token reads a bearer token.
func (c *Credentials) token() (string, error) {
	data, err := c.read(c.TokenFile, true)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	// A policy that names the file of an OAuth2 client must not have its secret sent.
	if !sendable(token) || strings.HasPrefix(token, "{") {
		return "", fmt.Errorf("%s is no token in one line", filepath.Join(c.Folder, c.TokenFile))
	}
	return token, nil
}

// sendable says that a token can be the value of a header.
func sendable(token string) bool {
	return token != "" && len(token) <= maxShown && !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}

// credentialed is the plugin for one server of bundles, and what it has got so far.
type credentialed struct {
	Credentials

	mu sync.Mutex
	// transport was made of the files of which made is the digest.
	transport *http.Transport
	made      [sha256.Size]byte
	// issued is the token that an OAuth2 server gave until expires, for the client file
	// of which client is the digest.
	issued  string
	expires time.Time
	client  [sha256.Size]byte
	timeout time.Duration
}

// NewClient implements rest.HTTPAuthPlugin.
func (p *credentialed) NewClient(c rest.Config) (*http.Client, error) {
	if c.ResponseHeaderTimeoutSeconds != nil {
		p.mu.Lock()
		p.timeout = time.Duration(*c.ResponseHeaderTimeoutSeconds) * time.Second
		p.mu.Unlock()
	}
	return &http.Client{Transport: p}, nil
}

// Prepare implements rest.HTTPAuthPlugin.
func (p *credentialed) Prepare(req *http.Request) error {
	token, err := "", error(nil)
	switch {
	case p.TokenFile != "":
		token, err = p.token()
	case p.ClientFile != "":
		token, err = p.oauthToken(req.Context())
	}
	if err == nil && token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return err
}

// RoundTrip implements http.RoundTripper by the certificates that the files have now.
func (p *credentialed) RoundTrip(req *http.Request) (*http.Response, error) {
	transport, err := p.current()
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		p.mu.Lock()
		p.issued = "" // it may have been withdrawn before its time
		p.mu.Unlock()
	}
	return resp, err
}

// current makes the transport anew when a file has changed.
func (p *credentialed) current() (*http.Transport, error) {
	var files [3][]byte
	for i, f := range []struct {
		name   string
		secret bool
	}{{p.CAFile, false}, {p.CertificateFile, false}, {p.KeyFile, true}} {
		if f.name == "" {
			continue
		}
		var err error
		if files[i], err = p.read(f.name, f.secret); err != nil {
			return nil, err
		}
	}
	digest := sha256.New()
	for _, f := range files {
		fmt.Fprintf(digest, "%d ", len(f))
		digest.Write(f)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if sum := [sha256.Size]byte(digest.Sum(nil)); p.transport == nil || sum != p.made {
		config, err := p.tlsConfig(files)
		if err != nil {
			return nil, err
		}
		if p.transport != nil {
			p.transport.CloseIdleConnections()
		}
		p.made = sum
		p.transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, ForceAttemptHTTP2: true, ResponseHeaderTimeout: p.timeout,
			TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second, MaxIdleConns: 4,
		}
	}
	return p.transport, nil
}

// tlsConfig is made of roots, a certificate and its key, each of which may be nil.
func (p *credentialed) tlsConfig(files [3][]byte) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if files[0] != nil {
		roots, err := pemroots.Parse(files[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(p.Folder, p.CAFile), err)
		}
		config.RootCAs = roots
	}
	if files[1] != nil {
		pair, err := tls.X509KeyPair(files[1], files[2])
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", filepath.Join(p.Folder, p.CertificateFile), p.KeyFile, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// oauthClient is what a client file says: who asks, whom, and by which secret. The
// server is in the file and not in the policy, so that no policy sends the secret
// anywhere else.
type oauthClient struct {
	TokenURL     string `json:"token_url"`
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
}

const (
	// oauthTimeout bounds a call for a token, oauthMargin is how long before its end a
	// token is not used any more, and oauthUnsaid how long one lasts that does not say.
	oauthTimeout = 30 * time.Second
	oauthMargin  = 10 * time.Second
	oauthUnsaid  = time.Minute
	// oauthLongest bounds what a server says, for no withdrawn token is used for ever.
	oauthLongest = 24 * time.Hour
)

// oauthToken gives a token by the client's secret (RFC 6749 section 4.4).
func (p *credentialed) oauthToken(ctx context.Context) (string, error) {
	data, err := p.read(p.ClientFile, true)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	p.mu.Lock()
	token := p.issued
	if p.client != sum || !time.Now().Before(p.expires) {
		token = ""
	}
	p.mu.Unlock()
	if token != "" {
		return token, nil
	}
	var client oauthClient
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&client); err != nil {
		return "", fmt.Errorf("%s: want token_url, client_id and client_secret in JSON", filepath.Join(p.Folder, p.ClientFile)) // the error might quote it
	}
	if u, err := url.Parse(client.TokenURL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || client.ClientID == "" || client.ClientSecret == "" {
		return "", fmt.Errorf("%s: want an https token_url, a client_id and a client_secret", filepath.Join(p.Folder, p.ClientFile))
	}
	token, lasts, err := p.askForToken(ctx, client)
	if err != nil {
		return "", fmt.Errorf("a token of %s: %w", client.TokenURL, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.issued, p.client, p.expires = token, sum, time.Now().Add(lasts)
	return token, nil
}

func (p *credentialed) askForToken(ctx context.Context, client oauthClient) (string, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, oauthTimeout)
	defer cancel()
	form := url.Values{"grant_type": {"client_credentials"}}
	if len(p.Scopes) > 0 {
		form.Set("scope", strings.Join(p.Scopes, " "))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, client.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.SetBasicAuth(url.QueryEscape(client.ClientID), url.QueryEscape(client.ClientSecret))
	transport, err := p.current()
	if err != nil {
		return "", 0, err
	}
	resp, err := transport.RoundTrip(req) // no redirect is followed
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxCredential+1))
	if err != nil {
		return "", 0, err
	}
	var answer struct {
		Token   string  `json:"access_token"`
		Type    string  `json:"token_type"`
		Expires float64 `json:"expires_in"`
		Error   string  `json:"error"`
	}
	malformed := len(data) > maxCredential || json.Unmarshal(data, &answer) != nil
	switch {
	case resp.StatusCode != http.StatusOK:
		return "", 0, fmt.Errorf("the answer is %d %.60q", resp.StatusCode, answer.Error)
	case malformed || !strings.EqualFold(answer.Type, "bearer") || !sendable(answer.Token) || answer.Expires < 0:
		return "", 0, errors.New("the answer is no bearer token")
	case answer.Expires == 0:
		return answer.Token, oauthUnsaid, nil
	}
	lasts := time.Duration(min(answer.Expires, oauthLongest.Seconds()) * float64(time.Second))
	return answer.Token, max(lasts-oauthMargin, lasts/2), nil
}
