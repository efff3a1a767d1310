// Package pod does what containers need that have no shell: it asks whether a
// program is ready, and sends a request from where the container is. It is behind
// writ-pod, whose binary is in every image; so it uses the standard library alone.
package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// readyTimeout is below that of the health checks, so that they tell why.
	readyTimeout   = 3 * time.Second
	requestTimeout = 10 * time.Second
	// maxInput and maxBody bound what is read, in bytes.
	maxInput = 2 << 20
	maxBody  = 1 << 20
)

var errUsage = errors.New("usage: writ-pod ready URL | request | hold; writ-pod -help explains them")

const help = `writ-pod: what a container without a shell needs beside its program

  writ-pod ready URL   exit 0 if a GET of URL answers 200, else 1: for health checks
  writ-pod request     send the request on standard input, in JSON, from where this
                       container is, and write the answer: for writ check --target
  writ-pod hold        do nothing until told to end: it keeps the network that the
                       containers of a pod share

example: writ-pod ready http://127.0.0.1:15014/readyz
`

// Run runs one of the duties. It returns an error if the answer is "no" or there
// is none.
func Run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	switch {
	case len(args) == 2 && args[0] == "ready":
		return ready(ctx, args[1])
	case len(args) == 1 && args[0] == "request":
		return request(ctx, in, out)
	case len(args) == 1 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help"):
		_, err := io.WriteString(out, help)
		return err
	case len(args) == 1 && args[0] == "hold":
		<-ctx.Done()
		return nil
	}
	return errUsage
}

func newClient(timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout: timeout, Transport: &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func ready(ctx context.Context, url string) error {
	client := newClient(readyTimeout)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d: %s", url, resp.StatusCode, strings.TrimSpace(string(body)))
	}
	return nil
}

// request reads a [Request] and writes a Answer. That no answer came is
// an answer too, not an error.
func request(ctx context.Context, in io.Reader, out io.Writer) error {
	var r Request
	d := json.NewDecoder(io.LimitReader(in, maxInput))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return fmt.Errorf("request on standard input: %w", err)
	}
	client := NewClient()
	defer client.CloseIdleConnections()
	return json.NewEncoder(out).Encode(Do(ctx, client, &r))
}

// NewClient returns a client that shows answers as they come: redirects are not
// followed, nothing is unpacked. A request is given up after ten seconds.
func NewClient() *http.Client { return newClient(requestTimeout) }

// Do sends r as often as it says and returns the last answer.
func Do(ctx context.Context, client *http.Client, r *Request) Answer {
	var a Answer
	for range max(r.Repeat, 1) {
		a = send(ctx, client, r)
	}
	return a
}

func send(ctx context.Context, client *http.Client, r *Request) Answer {
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, strings.NewReader(r.Body))
	if err != nil {
		return failure(err)
	}
	for k, v := range r.Headers {
		req.Header.Set(k, v)
		if strings.EqualFold(k, "host") {
			req.Host = v
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return failure(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return failure(err)
	}
	return Answer{Status: resp.StatusCode, Header: resp.Header, Body: string(body)}
}

func failure(err error) Answer {
	var timeout interface{ Timeout() bool }
	return Answer{Error: err.Error(), Timeout: errors.As(err, &timeout) && timeout.Timeout()}
}
