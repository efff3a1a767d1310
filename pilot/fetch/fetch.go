// Package fetch gets documents that policies name from servers that their authors
// choose. Guard.Get is all there is.
//
// A server is asked by GET, without a proxy and without credentials, over TLS 1.2 or
// later if the URL says https. Addresses that no document has any business at are
// refused when they are dialled, whatever name led there: link-local ones, the metadata
// services of clouds, those of the mesh's own services, and a proxy's own ports.
// Redirects are followed only as far as the request says, and never to another scheme.
// What a server answers is not in errors, so that who may write a policy cannot read
// through it what only pilot can reach.
package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
	"time"

	"github.com/writ-mesh/writ/pilot/model"
)

// Guard says where documents may come from.
type Guard struct {
	// URLs are what a URL has to begin with, one of them; empty for any. Setting is
	// where an operator says so.
	URLs    []string
	Setting string
	// AddressProblem says why nothing may be fetched from a port of an address, "" if
	// it may; nil if it may from every one.
	AddressProblem func(address string, port uint32) string
}

// Request is one look.
type Request struct {
	URL, Accept string
	// Tag is that of the document which is there already, empty for none.
	Tag     string
	Timeout time.Duration
	// Roots are the authorities of the server, nil for the system's.
	Roots *x509.CertPool
	// Redirects is how often the server may send on.
	Redirects int
	// MaxBody bounds the document, in bytes.
	MaxBody int64
	// Addresses are where the server is, each host:port, in place of what its name means;
	// nil for that.
	Addresses []string
}

// Answer is what a server gave. Unchanged says that it is what Tag is of.
type Answer struct {
	Body      []byte
	Tag       string
	Unchanged bool
	// Header is the answer's.
	Header http.Header
}

// ErrTooLarge says that a document has more than MaxBody.
var ErrTooLarge = errors.New("the server's answer is too large")

// Get asks a server once.
func (g Guard) Get(ctx context.Context, r Request) (Answer, error) {
	if problem := model.URLProblem(r.URL); problem != "" {
		return Answer{}, errors.New("the URL " + problem)
	}
	if !g.allowed(r.URL) {
		return Answer{}, fmt.Errorf("this pilot fetches from other places only (%s)", g.Setting)
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	client := g.client(r)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL, nil)
	if err != nil {
		return Answer{}, errors.New("the URL cannot be used")
	}
	req.Header.Set("Accept", r.Accept)
	if r.Tag != "" {
		req.Header.Set("If-None-Match", r.Tag)
	}
	resp, err := client.Do(req)
	if err != nil {
		return Answer{}, withoutAnswer(err)
	}
	defer func() { _ = resp.Body.Close() }()
	return read(resp, r)
}

// maxTag bounds the tags that are kept, in bytes.
const maxTag = 1 << 10

func read(resp *http.Response, r Request) (Answer, error) {
	switch {
	case resp.StatusCode == http.StatusNotModified && r.Tag != "":
		return Answer{Unchanged: true, Header: resp.Header}, nil
	case resp.StatusCode != http.StatusOK:
		return Answer{}, fmt.Errorf("the server answers with status %d", resp.StatusCode)
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && strings.HasSuffix(kind, "html") {
		return Answer{}, errors.New("the server answers with a page (text/html)")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, r.MaxBody+1))
	if err != nil {
		return Answer{}, fmt.Errorf("read: %w", withoutAnswer(err))
	}
	if int64(len(body)) > r.MaxBody {
		return Answer{}, ErrTooLarge
	}
	out := Answer{Body: body, Tag: resp.Header.Get("ETag"), Header: resp.Header}
	if len(out.Tag) > maxTag {
		out.Tag = ""
	}
	return out, nil
}

// allowed says whether a URL may be asked at all.
func (g Guard) allowed(text string) bool {
	u, err := url.Parse(text)
	if err != nil || model.URLProblem(text) != "" {
		return false
	}
	return len(g.URLs) == 0 || slices.ContainsFunc(g.URLs, func(prefix string) bool {
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

func (g Guard) client(r Request) *http.Client {
	dialer := &net.Dialer{Timeout: r.Timeout, ControlContext: g.control}
	dial := dialer.DialContext
	if r.Addresses != nil {
		dial = func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
			err = refusal("nobody is there")
			for _, address := range r.Addresses {
				if conn, err = dialer.DialContext(ctx, network, address); err == nil {
					return conn, nil
				}
			}
			return nil, err
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dial, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: r.Roots}, TLSHandshakeTimeout: r.Timeout, ForceAttemptHTTP2: true,
			DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			switch {
			case r.Redirects == 0:
				return refusal("the server sends on; name the place that it means")
			case len(via) > r.Redirects:
				return refusal("the server sends on too often")
			case req.URL.Scheme != via[0].URL.Scheme:
				return refusal("the server sends on to another scheme")
			case !g.allowed(req.URL.String()):
				return refusal("the server sends on to where this pilot fetches nothing from (" + g.Setting + ")")
			}
			return nil
		},
	}
}

// control refuses addresses when they are dialled.
func (g Guard) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return refusal("an address that is none")
	}
	ip := to.Addr().Unmap().WithZone("")
	if ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
		return refusal("nothing may come from such an address: it is link-local, multicast or unspecified")
	}
	if slices.Contains(metadata(), ip) {
		return refusal("nothing may come from such an address: it is that of a cloud's metadata")
	}
	if g.AddressProblem != nil {
		if problem := g.AddressProblem(ip.String(), uint32(to.Port())); problem != "" {
			return refusal("the address of the server " + problem)
		}
	}
	return nil
}

// metadata are the addresses of metadata services of clouds that are not link-local: of
// AWS and Google Cloud over IPv6, Azure (its WireServer), Alibaba Cloud and Oracle Cloud.
func metadata() []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd20:ce::254"), netip.MustParseAddr("168.63.129.16"),
		netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("192.0.0.192"),
	}
}
