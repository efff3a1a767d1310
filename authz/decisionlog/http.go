package decisionlog

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/writ-mesh/writ/internal/pemroots"
)

// HTTPOptions are for [NewHTTP].
type HTTPOptions struct {
	// URL is posted to, as OPA posts to <service>/logs: a JSON array, gzip'd.
	URL string
	// TokenFile has a bearer token, read for each batch; empty sends none.
	TokenFile string
	// CAFile has PEM roots instead of those of the system.
	CAFile string
}

// httpTimeout bounds one request.
const httpTimeout = 30 * time.Second

// HTTP is a sink that posts batches as they are.
type HTTP struct {
	o      HTTPOptions
	client *http.Client
}

// NewHTTP makes the sink; nothing is sent yet.
func NewHTTP(o HTTPOptions) (*HTTP, error) {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConns: 2, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if o.CAFile != "" {
		roots, err := pemroots.Load(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		transport.TLSClientConfig.RootCAs = roots
	}
	return &HTTP{o: o, client: &http.Client{
		Transport: transport, Timeout: httpTimeout,
		// The token and the records are for this server alone.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// waitError asks to be left alone for a while.
type waitError struct {
	error
	wait time.Duration
}

// Send implements [Sink]. Any 2xx takes the batch; an answer that says that this
// batch can never be taken is a [RefusedError]; all else is tried again.
func (h *HTTP) Send(ctx context.Context, b Batch) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.o.URL, bytes.NewReader(b.Packed))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Content-Encoding", "gzip")
	if h.o.TokenFile != "" {
		token, err := os.ReadFile(h.o.TokenFile)
		if err != nil {
			return fmt.Errorf("token_file: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode/100 == 2 {
		return nil
	}
	err = errors.New("the answer is " + resp.Status)
	if slices.Contains([]int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity}, resp.StatusCode) {
		return &RefusedError{Err: err, TooLarge: resp.StatusCode == http.StatusRequestEntityTooLarge}
	}
	if s, convErr := strconv.Atoi(resp.Header.Get("Retry-After")); convErr == nil && s > 0 {
		return waitError{err, min(time.Duration(min(s, 3600))*time.Second, maxRetry)}
	}
	return err
}
