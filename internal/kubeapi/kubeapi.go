// Package kubeapi calls the HTTP APIs of a Kubernetes cluster, as far as Writ needs
// them: one request with a bearer token, one bounded answer.
package kubeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// Client is how an API is called. Its files are read anew at each call, because
// clusters replace them.
type Client struct {
	// CAFile has the roots of the server in PEM; empty means those of the system.
	CAFile string
	// TokenFile has the bearer token; empty means none.
	TokenFile string
	// Timeout bounds a call.
	Timeout time.Duration
	// MaxAnswer bounds an answer, in bytes.
	MaxAnswer int
}

// Call sends a request, with body as JSON unless it is nil, and returns the answer.
// Any status but 200 and 201 is an error, also a redirection: the token goes nowhere
// else. The environment's proxy is not used, and each call is a connection of its
// own, since roots may have changed and calls are rare.
func (c *Client) Call(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.TokenFile != "" {
		token, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	client := &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, int64(c.MaxAnswer)+1))
	if err == nil && len(data) > c.MaxAnswer {
		err = fmt.Errorf("%s %s: the answer has more than %d bytes", method, url, c.MaxAnswer)
	}
	return data, err
}

// roots returns nil for those of the system.
func (c *Client) roots() (*x509.CertPool, error) {
	if c.CAFile == "" {
		return nil, nil //nolint:nilnil // as tls.Config wants it
	}
	data, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s has no certificate", c.CAFile)
	}
	return pool, nil
}
