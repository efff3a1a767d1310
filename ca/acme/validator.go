package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	stepacme "github.com/smallstep/certificates/acme"
)

const (
	// validationTime bounds one validation.
	validationTime = 10 * time.Second
	// maxAnswer bounds what is read of an answer to http-01, which has about 90 bytes.
	maxAnswer = 4 << 10
	// maxRedirects is how many redirects are followed.
	maxRedirects = 5
	// maxValidations bounds those under way, maxOwnValidations those of one account.
	maxValidations, maxOwnValidations = 64, 8
)

var errBusy = errors.New("too many validations are under way; try again")

// validator connects to those who ask for certificates. A client says the name and,
// by its DNS records, the address, so it connects to addresses that networks permits
// and to the ports of the challenges only, and tells of an answer no more than whether
// it is the one that was expected.
type validator struct {
	networks networks
	// ports are those connected to instead of 80 and 443.
	ports    map[string]string
	resolver *net.Resolver

	mu       sync.Mutex
	underway map[string]int // by account
	total    int
}

func newValidator(c Config) (*validator, error) {
	n, err := parseNetworks(c.Networks)
	if err != nil {
		return nil, fmt.Errorf("acme.networks: %w", err)
	}
	v := &validator{
		networks: n, ports: map[string]string{"80": strconv.Itoa(c.HTTPPort), "443": strconv.Itoa(c.TLSPort)},
		resolver: net.DefaultResolver, underway: map[string]int{},
	}
	if c.Resolver != "" {
		v.resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, c.Resolver)
		}}
	}
	return v, nil
}

// begin lets one more validation of an account begin, until done is called.
func (v *validator) begin(account string) (done func(), err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.total >= maxValidations || v.underway[account] >= maxOwnValidations {
		return nil, errBusy
	}
	v.total++
	v.underway[account]++
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.total--
		if v.underway[account]--; v.underway[account] == 0 {
			delete(v.underway, account)
		}
	}, nil
}

// forRequest is the validator for one request, which ends with it. It implements
// smallstep's acme.Client.
func (v *validator) forRequest(ctx context.Context) stepacme.Client {
	return &validation{v: v, ctx: ctx}
}

type validation struct {
	v   *validator
	ctx context.Context // acme.Client's methods have none
}

func (c *validation) begin() (context.Context, func(), error) {
	done, err := c.v.begin(requestFrom(c.ctx).account)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(c.ctx, validationTime)
	return ctx, func() { cancel(); done() }, nil
}

// Get implements acme.Client, for http-01.
func (c *validation) Get(url string) (*http.Response, error) {
	ctx, done, err := c.begin()
	if err != nil {
		return nil, err
	}
	defer done()
	client := &http.Client{
		Transport: &http.Transport{
			DialContext: c.v.dial, DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // after a redirect; who has no certificate yet asks for one (RFC 8555 section 8.3)
		},
		CheckRedirect: checkRedirect,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	return resp, nil
}

// checkRedirect follows redirects to the same two ports, so that a web server that
// sends everybody to https can be validated.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return errors.New("too many redirects")
	}
	if s := req.URL.Scheme; s != "http" && s != "https" {
		return fmt.Errorf("redirect to %s", s)
	}
	return nil
}

// LookupTxt implements acme.Client, for dns-01.
func (c *validation) LookupTxt(name string) ([]string, error) {
	ctx, done, err := c.begin()
	if err != nil {
		return nil, err
	}
	defer done()
	return c.v.resolver.LookupTXT(ctx, strings.TrimSuffix(name, ".")+".")
}

// TLSDial implements acme.Client, for tls-alpn-01.
func (c *validation) TLSDial(network, addr string, config *tls.Config) (*tls.Conn, error) {
	ctx, done, err := c.begin()
	if err != nil {
		return nil, err
	}
	defer done()
	raw, err := c.v.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// dial connects to a name or address and one of the two ports.
func (v *validator) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	to, ok := v.ports[port]
	if !ok {
		return nil, fmt.Errorf("port %s is none of the challenges'", port)
	}
	if _, err := netip.ParseAddr(host); err != nil && strings.Contains(host, ".") {
		// Without the machine's search list. A name of one label has nothing else.
		host = strings.TrimSuffix(host, ".") + "."
	}
	d := net.Dialer{Resolver: v.resolver, ControlContext: v.control}
	return d.DialContext(ctx, network, net.JoinHostPort(host, to))
}

// control is called with each address before a connection to it begins, so that it is
// the address that counts and not what a name led to a moment ago.
func (v *validator) control(_ context.Context, network, addr string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(addr)
	if err != nil || !strings.HasPrefix(network, "tcp") || !v.networks.permits(to.Addr()) {
		return fmt.Errorf("validation does not connect to %s; acme.networks says which private networks it may", addr)
	}
	return nil
}
