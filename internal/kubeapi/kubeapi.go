// Package kubeapi calls the HTTP APIs of a Kubernetes cluster, as far as Writ needs
// them: a request with a bearer token and one bounded answer (Call), or an answer of
// bounded lines that goes on (Watch).
package kubeapi

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/writ-mesh/writ/internal/pemroots"
)

// maxStatus bounds what is read of a refusal, in bytes.
const maxStatus = 16 << 10

// Client is how an API is called. Its files are read anew at each call, because
// clusters replace them.
type Client struct {
	// CAFile has the roots of the server in PEM; empty means those of the system.
	CAFile string
	// TokenFile has the bearer token; empty means none.
	TokenFile string
	// Accept is the type of answer to ask for; empty means application/json.
	Accept string
	// Timeout bounds a call, and the time until a watch begins.
	Timeout time.Duration
	// MaxAnswer bounds an answer, and a line of a watch, in bytes.
	MaxAnswer int
}

// StatusError is an answer that says no.
type StatusError struct {
	// Code is that of HTTP.
	Code int
	text string
}

// Error is the request and what the API said.
func (e *StatusError) Error() string { return e.text }

// Call sends a request, with body as JSON unless it is nil (for PATCH as a merge
// patch, RFC 7396), and returns the answer. Any status but 200 and 201 is a
// *StatusError, also a redirection: the token goes nowhere else. The environment's
// proxy is not used, and each call is a connection of its own, since roots may have
// changed and calls are rare.
func (c *Client) Call(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	resp, err := c.send(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, int64(c.MaxAnswer)+1))
	if err == nil && len(data) > c.MaxAnswer {
		err = fmt.Errorf("%s %s: the answer has more than %d bytes", method, url, c.MaxAnswer)
	}
	return data, err
}

// Watch sends a GET request whose answer goes on, and returns when it has begun. The
// lines of the answer are good until the next one; they end with an error, or without
// one when the server ends the answer. They have to be ranged over, which closes the
// connection, or ctx has to end.
func (c *Client) Watch(ctx context.Context, url string) (iter.Seq2[[]byte, error], error) {
	ctx, cancel := context.WithCancel(ctx)
	begun := time.AfterFunc(c.Timeout, cancel)
	resp, err := c.send(ctx, http.MethodGet, url, nil) //nolint:bodyclose // the lines do it
	if !begun.Stop() && err == nil {
		_ = resp.Body.Close()
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return func(yield func([]byte, error) bool) {
		defer cancel()
		defer func() { _ = resp.Body.Close() }()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, c.MaxAnswer)
		for lines.Scan() {
			if !yield(lines.Bytes(), nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(nil, fmt.Errorf("GET %s: %w", url, err))
		}
	}, nil
}

// send sends a request and returns an answer that says yes.
func (c *Client) send(ctx context.Context, method, url string, body []byte) (*http.Response, error) {
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", cmp.Or(c.Accept, "application/json"))
	switch {
	case body == nil:
	case method == http.MethodPatch:
		req.Header.Set("Content-Type", "application/merge-patch+json")
	default:
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
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		defer func() { _ = resp.Body.Close() }()
		return nil, refusal(method, url, resp)
	}
	return resp, nil
}

// refusal says no with the words of the API, if it has any.
func refusal(method, url string, resp *http.Response) error {
	e := &StatusError{Code: resp.StatusCode, text: fmt.Sprintf("%s %s: %s", method, url, resp.Status)}
	var status struct {
		Message string `json:"message"`
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	if err == nil && json.Unmarshal(data, &status) == nil && status.Message != "" {
		e.text += fmt.Sprintf(": %.500q", status.Message)
	}
	return e
}

// roots returns nil for those of the system.
func (c *Client) roots() (*x509.CertPool, error) {
	if c.CAFile == "" {
		return nil, nil //nolint:nilnil // as tls.Config wants it
	}
	return pemroots.Load(c.CAFile)
}
