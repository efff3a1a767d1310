package keysource

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/writ-mesh/writ/internal/jwks"
	"github.com/writ-mesh/writ/pilot/fetch"
	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// refresh is after how long a set is looked at anew if its answer does not say; it was
	// Istio's and Envoy's.
	refresh = 5 * time.Minute
	// leastRefresh is the same on this machine, and the least that an answer can ask for.
	leastRefresh = 10 * time.Second
	// mostRefresh is the most that an answer can ask for: for so long a key that was
	// withdrawn can count. Istio's control plane looks as often.
	mostRefresh = 20 * time.Minute
	// timeout is how long a look may take unless a rule says otherwise (Istio's); then
	// it is between the bounds.
	timeout, leastTimeout, mostTimeout = 5 * time.Second, 100 * time.Millisecond, 30 * time.Second
	// maxDocument bounds a discovery document, in bytes.
	maxDocument = 256 << 10
)

// answer is what a place gave.
type answer struct {
	// unchanged says that it is what the tag was of.
	unchanged bool
	text      string
	set       *jwks.Set
	tag       tag
	// next is after how long to look again.
	next time.Duration
}

// tag says what a server calls its answer, and whose it is.
type tag struct {
	URI   string `json:"uri,omitempty"`
	Value string `json:"value,omitempty"`
}

// look asks a place once.
func (k *Keeper) look(ctx context.Context, p Place, have tag) (answer, error) {
	r := fetch.Request{
		URL: p.URI, Accept: "application/jwk-set+json, application/json", Timeout: min(max(p.Timeout, leastTimeout), mostTimeout),
		Roots: k.roots, MaxBody: jwks.MaxSize, Addresses: p.Addresses,
	}
	if p.Timeout == 0 {
		r.Timeout = timeout
	}
	if p.Discovery {
		if err := k.discover(ctx, &r); err != nil {
			return answer{}, err
		}
	}
	if have.URI == r.URL {
		r.Tag = have.Value
	}
	a, err := k.get(ctx, r)
	if err != nil {
		return answer{}, err
	}
	out := answer{unchanged: a.Unchanged, tag: tag{r.URL, a.Tag}, next: next(r.URL, a.Header)}
	if !a.Unchanged {
		out.text, out.set, err = decode(a.Body)
	}
	return out, err
}

// discover finds out where the key set is (OpenID Connect Discovery 1.0, section 4).
func (k *Keeper) discover(ctx context.Context, r *fetch.Request) error {
	first := *r
	first.Accept, first.MaxBody = "application/json", maxDocument
	a, err := k.get(ctx, first)
	if err != nil {
		return err
	}
	var doc struct {
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(a.Body, &doc); err != nil || doc.JWKSURI == "" {
		return errors.New("the issuer's discovery document has no jwks_uri")
	}
	from, err := url.Parse(r.URL)
	if err != nil {
		return err
	}
	to, err := url.Parse(doc.JWKSURI)
	if err != nil || model.URLProblem(doc.JWKSURI) != "" {
		return errors.New("the jwks_uri of the issuer's discovery document is no URL that can be used")
	}
	if from.Scheme == "https" && to.Scheme != "https" {
		return errors.New("the jwks_uri of the issuer's discovery document is not https")
	}
	if to.Host != from.Host {
		r.Addresses = nil // they are those of the issuer's host
	}
	r.URL = doc.JWKSURI
	return nil
}

// next says after how long an answer is old (RFC 9111, sections 4.2.1 and 5.2.2).
func next(uri string, h http.Header) time.Duration {
	usual := refresh
	if u, err := url.Parse(uri); err == nil && near(u.Hostname()) {
		usual = leastRefresh
	}
	for directive := range strings.SplitSeq(strings.Join(h.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-cache", "no-store":
			return leastRefresh
		case "max-age":
			seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
			if err != nil {
				return leastRefresh // too large a number is none that we believe
			}
			usual = min(max(time.Duration(seconds)*time.Second, leastRefresh), mostRefresh)
		}
	}
	return usual
}

// near tells whether a host is this machine.
func near(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || strings.EqualFold(host, "localhost")
}
