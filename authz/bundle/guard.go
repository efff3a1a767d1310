package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/writ-mesh/writ/authz/background"
	"github.com/writ-mesh/writ/authz/unpack"
)

// Limits bound what a server of bundles can make this service take.
type Limits struct {
	// Packed and Unpacked are bytes of one answer, before and after gzip.
	Packed, Unpacked int64
	// Stall is how long an answer may stand still, Total how long it may take
	// from its first byte.
	Stall, Total time.Duration
}

// defaultLimits are OPA's size limit of 1 GiB, here for a whole bundle and not
// for each of its files, a quarter of it packed, and times for slow lines.
func defaultLimits() Limits {
	return Limits{Packed: 256 << 20, Unpacked: 1 << 30, Stall: 30 * time.Second, Total: 10 * time.Minute}
}

// The ways in which a server is refused.
var (
	errTooLarge  = errors.New("the answer is larger than the limit")
	errTooSlow   = errors.New("the answer takes too long")
	errOtherHost = errors.New("the server sends us to another host")
	errPlainText = errors.New("the server sends us from https to plain text")
)

// guard stands between OPA's client of one service and the network.
type guard struct {
	base http.RoundTripper
	// home is the service's own URL.
	home *url.URL
	// registry: the service is an OCI registry, whose token server and store of
	// blobs are other hosts.
	registry bool
	// names are the headers that carry the service's configuration, beside
	// Authorization.
	names  []string
	limits Limits
	// wraps puts bundles into archives of their own.
	wraps bool
	// beside does work without requests waiting for it; nil for at once.
	beside beside
}

// beside does work so that requests do not wait for it, at once if it is little.
type beside func(ctx context.Context, little bool, work func() error) error

// RoundTrip implements http.RoundTripper: it refuses where a request must not
// go, and gives an answer that has arrived whole and is within the limits.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	req, err := g.admit(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	defer cancel(nil)
	begun := func() bool { return true }
	if wait, ok := longPoll(req.Header); ok {
		// The client sets no limit for the time to the first byte then.
		begun = time.AfterFunc(wait+g.limits.Stall, func() { cancel(errTooSlow) }).Stop
	}
	resp, err := g.base.RoundTrip(req.WithContext(ctx))
	begun()
	if err != nil {
		return nil, reason(ctx, err)
	}
	body, err := g.read(ctx, resp, cancel)
	_ = resp.Body.Close()
	if err == nil {
		wraps, little := g.wraps && wrappable(req, resp, body), smallBytes
		if wraps {
			little = smallWrapped
		}
		err = g.aside(ctx, len(body) <= little, func() error {
			if !wraps {
				return unpack.Check(body, g.limits.Unpacked)
			}
			body = wrap(body) // it is measured when it is unpacked
			resp.ContentLength = int64(len(body))
			resp.Header.Del("Content-Length")
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.URL.Redacted(), reason(ctx, err))
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// aside looks at an answer where nobody waits for it.
func (g *guard) aside(ctx context.Context, little bool, work func() error) error {
	if g.beside == nil {
		return background.Try(work)
	}
	return g.beside(ctx, little, work)
}

// reason is why a context was cancelled by the guard, else the error itself.
func reason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errTooSlow) {
		return cause
	}
	return err
}

// admit lets requests to the service's own host pass. The others come from
// redirects and, with registries, from challenges: what a server chose.
func (g *guard) admit(req *http.Request) (*http.Request, error) {
	req = req.Clone(req.Context())
	if p := req.Header.Get("Prefer"); p != "" {
		req.Header.Set("Prefer", strings.Replace(p, "modes=snapshot,delta", "modes=snapshot", 1))
	}
	to := req.URL
	if g.home.Scheme == "https" && to.Scheme != "https" {
		return nil, fmt.Errorf("%w: %s", errPlainText, to.Host)
	}
	if to.Host == g.home.Host {
		return req, nil
	}
	if !g.registry {
		return nil, fmt.Errorf("%w: %s instead of %s", errOtherHost, to.Host, g.home.Host)
	}
	if sameSite(to, g.home) {
		return req, nil
	}
	for _, name := range append([]string{"Authorization", "Cookie"}, g.names...) {
		req.Header.Del(name)
	}
	return req, nil
}

// sameSite says that two hosts reached by TLS belong to one owner, as
// registry-1.docker.io and auth.docker.io do.
func sameSite(a, b *url.URL) bool {
	if a.Scheme != "https" || b.Scheme != "https" {
		return false
	}
	x, err := publicsuffix.EffectiveTLDPlusOne(a.Hostname())
	if err != nil {
		return false
	}
	y, err := publicsuffix.EffectiveTLDPlusOne(b.Hostname())
	return err == nil && x == y
}

// longPoll reads how long the client lets the server wait for news (RFC 7240,
// preference wait).
func longPoll(h http.Header) (time.Duration, bool) {
	for _, part := range strings.FieldsFunc(strings.Join(h.Values("Prefer"), ";"), func(r rune) bool { return r == ';' || r == ',' }) {
		if s, ok := strings.CutPrefix(strings.TrimSpace(part), "wait="); ok {
			if n, err := strconv.ParseUint(s, 10, 31); err == nil {
				return time.Duration(n) * time.Second, true
			}
		}
	}
	return 0, false
}

// read takes the whole answer. A bundle is small beside what OPA makes of it, and
// only a whole one can be measured before it is unpacked.
func (g *guard) read(ctx context.Context, resp *http.Response, cancel context.CancelCauseFunc) ([]byte, error) {
	if resp.ContentLength > g.limits.Packed {
		return nil, fmt.Errorf("%w of %d bytes: it says it has %d", errTooLarge, g.limits.Packed, resp.ContentLength)
	}
	total := time.AfterFunc(g.limits.Total, func() { cancel(errTooSlow) })
	defer total.Stop()
	stall := time.AfterFunc(g.limits.Stall, func() { cancel(errTooSlow) })
	defer stall.Stop()
	// A body need not mind the context of its request; closing it ends any read. Who closes
	// it may come late, when resp has another one.
	body := resp.Body
	unwatch := context.AfterFunc(ctx, func() { _ = body.Close() })
	defer unwatch()

	var all bytes.Buffer
	part := make([]byte, 64<<10)
	for {
		n, err := body.Read(part)
		stall.Reset(g.limits.Stall)
		if int64(all.Len()+n) > g.limits.Packed {
			return nil, fmt.Errorf("%w of %d bytes", errTooLarge, g.limits.Packed)
		}
		all.Write(part[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return all.Bytes(), nil
}
