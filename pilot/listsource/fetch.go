package listsource

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"github.com/writ-mesh/writ/internal/pemroots"
	"github.com/writ-mesh/writ/pilot/model"
)

// Limits say where lists may come from.
type Limits struct {
	// URLs are what the URL of a list has to begin with, one of them; empty for any.
	URLs []string
	// AddressProblem says why nothing may be fetched from a port of an address, "" if
	// it may; nil if it may from every one.
	AddressProblem func(address string, port uint32) string
	// ReadFile reads a file that an object names.
	ReadFile func(name string) ([]byte, error)
}

// answer is what a source gave. Unchanged says that it is what Tag is of.
type answer struct {
	body      []byte
	tag       string
	unchanged bool
}

// maxRedirects is how often a server may send on.
const maxRedirects = 3

// get looks at a source once. tag is that of the answer that is in force.
func (l Limits) get(ctx context.Context, src *model.AccessSource, tag string) (answer, error) {
	if src.File != "" {
		body, err := l.ReadFile(src.File)
		return answer{body: body}, err
	}
	if !l.allowed(src.URL) {
		return answer{}, errors.New("this pilot takes lists from other places only (list_urls)")
	}
	ctx, cancel := context.WithTimeout(ctx, src.Timeout)
	defer cancel()
	client, err := l.client(src)
	if err != nil {
		return answer{}, err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, src.URL, nil)
	if err != nil {
		return answer{}, errors.New("the URL cannot be used")
	}
	req.Header.Set("Accept", "text/plain, */*;q=0.1")
	if tag != "" {
		req.Header.Set("If-None-Match", tag)
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, withoutURL(err)
	}
	defer func() { _ = resp.Body.Close() }()
	return read(resp)
}

// withoutURL takes the URL out of an error, which whoever reads it knows, and which
// after redirects is what a server said.
func withoutURL(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

func read(resp *http.Response) (answer, error) {
	switch {
	case resp.StatusCode == http.StatusNotModified:
		return answer{unchanged: true}, nil
	case resp.StatusCode != http.StatusOK:
		return answer{}, fmt.Errorf("the server answers with status %d", resp.StatusCode)
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && strings.HasSuffix(kind, "html") {
		return answer{}, errors.New("the server answers with a page (text/html)")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return answer{}, fmt.Errorf("read: %w", err)
	}
	return answer{body: body, tag: resp.Header.Get("ETag")}, nil
}

// allowed says whether a URL may be asked at all.
func (l Limits) allowed(text string) bool {
	u, err := url.Parse(text)
	if err != nil || model.ListURLProblem(text) != "" {
		return false
	}
	return len(l.URLs) == 0 || slices.ContainsFunc(l.URLs, func(prefix string) bool {
		p, err := url.Parse(prefix)
		return err == nil && p.Scheme == u.Scheme && strings.EqualFold(p.Host, u.Host) && below(p.Path, u.Path)
	})
}

// below says whether a path is prefix or under it; one that has .. is under nothing.
func below(prefix, path string) bool {
	if slices.Contains(strings.Split(path, "/"), "..") {
		return false
	}
	prefix = strings.TrimSuffix(prefix, "/")
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

func (l Limits) client(src *model.AccessSource) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if src.CAFile != "" {
		pem, err := l.ReadFile(src.CAFile)
		if err != nil {
			return nil, fmt.Errorf("caCertificates: %w", err)
		}
		if config.RootCAs, err = pemroots.Parse(pem); err != nil {
			return nil, fmt.Errorf("caCertificates: %w", err)
		}
	}
	dialer := &net.Dialer{Timeout: src.Timeout, ControlContext: l.control}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: config, TLSHandshakeTimeout: src.Timeout, ForceAttemptHTTP2: true,
			DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			switch {
			case len(via) > maxRedirects:
				return errors.New("the server sends on too often")
			case req.URL.Scheme != via[0].URL.Scheme:
				return errors.New("the server sends on to another scheme")
			case !l.allowed(req.URL.String()):
				return errors.New("the server sends on to where this pilot takes no lists from")
			}
			return nil
		},
	}, nil
}

// control refuses addresses when they are dialled.
func (l Limits) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return errors.New("an address that is none")
	}
	ip := to.Addr().Unmap().WithZone("")
	if ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
		return errors.New("no list may come from such an address: it is link-local, multicast or unspecified")
	}
	if l.AddressProblem != nil {
		if problem := l.AddressProblem(ip.String(), uint32(to.Port())); problem != "" {
			return errors.New("the address of the server " + problem)
		}
	}
	return nil
}
