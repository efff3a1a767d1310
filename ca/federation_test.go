package ca

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/ca/federated"
	keys "github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// checkBundle compares what an endpoint serves with what the admin socket says.
func (h *harness) checkBundle(b *spiffebundle.Bundle) {
	h.t.Helper()
	want, err := h.admin().GetBundle(h.t.Context(), &capb.GetBundleRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	if seq, ok := b.SequenceNumber(); !ok || seq != want.GetSequence() {
		h.t.Errorf("sequence %d, want %d", seq, want.GetSequence())
	}
	if hint, ok := b.RefreshHint(); !ok || hint != h.config.BundleEndpoint.RefreshHint.D() {
		h.t.Errorf("refresh hint %s", hint)
	}
	if !b.X509Bundle().Equal(h.bundle()) || !b.JWTBundle().Equal(h.jwks()) || len(b.JWTAuthorities()) == 0 {
		h.t.Errorf("%d roots and %d keys", len(b.X509Authorities()), len(b.JWTAuthorities()))
	}
}

// TestBundleEndpointOfSPIFFE: who knows the roots can ask for the next ones, from
// this authority and from nobody else.
func TestBundleEndpointOfSPIFFE(t *testing.T) {
	h := start(t, func(c *Config) {
		c.Listen = "" // the endpoint alone
		c.BundleEndpoint.Listen = proctest.Address(t)
	})
	url := "https://" + h.config.BundleEndpoint.Listen + "/"
	id := spiffeid.RequireFromPath(td, "/writ/ca")
	b, err := federation.FetchBundle(t.Context(), td, url, federation.WithSPIFFEAuth(h.bundle(), id))
	if err != nil {
		t.Fatal(err)
	}
	h.checkBundle(b)
	if _, err := federation.FetchBundle(t.Context(), td, url, federation.WithSPIFFEAuth(h.bundle(), spiffeid.RequireFromPath(td, "/other"))); err == nil {
		t.Error("the endpoint is taken for another")
	}
	if _, err := federation.FetchBundle(t.Context(), td, url); err == nil {
		t.Error("the web's authorities vouch for it")
	}
	// A key of JWT-SVIDs and the certificate outlive a restart.
	h.restart()
	if _, err := federation.FetchBundle(t.Context(), td, url, federation.WithSPIFFEAuth(b, id)); err != nil {
		t.Error(err)
	}
}

// bundleWatcher of a bundle endpoint.
type bundleWatcher struct{ got chan *spiffebundle.Bundle }

func (w bundleWatcher) NextRefresh(hint time.Duration) time.Duration {
	return min(max(hint, 1), time.Second)
}
func (w bundleWatcher) OnUpdate(b *spiffebundle.Bundle) { w.got <- b }
func (bundleWatcher) OnError(error)                     {}

// TestBundleEndpointOfTheWeb: with a certificate from files, which are read again;
// a watcher gets the next key before it signs.
func TestBundleEndpointOfTheWeb(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	web := pkitest.NewRoot(t, "")
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair := func(names []string, addresses ...net.IP) {
		t.Helper()
		leaf := pkitest.Leaf("", time.Hour)
		leaf.DNSNames, leaf.IPAddresses = names, addresses
		certPEM, keyPEM := web.Issue(t, leaf)
		for path, data := range map[string][]byte{cert: certPEM, key: keyPEM} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	writePair(nil, net.IPv4(127, 0, 0, 1))
	h := start(t, func(c *Config) {
		c.BundleEndpoint.Listen, c.BundleEndpoint.Profile = proctest.Address(t), "https_web"
		c.BundleEndpoint.CertFile, c.BundleEndpoint.KeyFile = cert, key
		c.BundleEndpoint.RefreshHint = config.Duration(time.Second)
		c.JWT = JWTConfig{TTL: config.Duration(10 * time.Second), MaxTTL: config.Duration(10 * time.Second), KeyTTL: config.Duration(20 * time.Second)}
		if err := os.MkdirAll(c.State, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := keys.Open(t.Context(), c.jwtKeys(slog.New(slog.DiscardHandler)), time.Now().Add(-7*time.Second)); err != nil {
			t.Fatal(err)
		}
	})
	url := "https://" + h.config.BundleEndpoint.Listen + "/bundle"
	roots := federation.WithWebPKIRoots(web.Pool())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := bundleWatcher{make(chan *spiffebundle.Bundle, 10)}
	go func() { _ = federation.WatchBundle(ctx, td, url, w, roots) }()
	next := func() *spiffebundle.Bundle {
		t.Helper()
		select {
		case b := <-w.got:
			return b
		case <-time.After(testBudget):
			t.Fatal("the watcher heard nothing")
			return nil
		}
	}
	first := next()
	second := next()
	old, _ := first.SequenceNumber()
	if now, _ := second.SequenceNumber(); now <= old || len(second.JWTAuthorities()) != 2 {
		t.Errorf("%d keys with the number %d after %d", len(second.JWTAuthorities()), now, old)
	}
	h.checkBundle(second)

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: web.Pool(), MinVersion: tls.VersionTLS12}}, Timeout: testBudget}
	resp, err := client.Post(url, "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
	// A certificate for another name: it is in use when this one is refused.
	other := func() bool {
		_, err := federation.FetchBundle(t.Context(), td, url, roots)
		return err != nil && strings.Contains(err.Error(), "IP SANs")
	}
	writePair([]string{"elsewhere"})
	h.eventually("the new certificate is used", other)
	// What cannot be read leaves it.
	if err := os.WriteFile(key, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !other() {
		t.Error("a damaged key ends the endpoint")
	}
}

// TestBundleEndpointWithoutItsFiles: a certificate that is not there is an error at
// start.
func TestBundleEndpointWithoutItsFiles(t *testing.T) {
	c := DefaultConfig()
	c.TrustDomain, c.State, c.Admin = td.Name(), filepath.Join(t.TempDir(), "state"), "unix://"+filepath.Join(t.TempDir(), "a")
	c.BundleEndpoint.Listen, c.BundleEndpoint.Profile = proctest.Address(t), "https_web"
	c.BundleEndpoint.CertFile, c.BundleEndpoint.KeyFile = "/nowhere/cert.pem", "/nowhere/key.pem"
	if err := Run(t.Context(), c, newRuntime()); err == nil || !strings.Contains(err.Error(), "/nowhere/cert.pem") {
		t.Errorf("got %v", err)
	}
}

// TestTwoAuthoritiesFederate: each gets the other's bundle from its endpoint, and
// tells it to node agents and services, not to workloads.
func TestTwoAuthoritiesFederate(t *testing.T) {
	a := start(t, func(c *Config) { c.BundleEndpoint.Listen = proctest.Address(t) })
	begin := filepath.Join(t.TempDir(), "begin.json")
	first, err := bundleOf(t, a)
	if err != nil {
		t.Fatal(err)
	}
	old := first.Clone()
	old.SetSequenceNumber(0)
	data, err := old.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(begin, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) {
		c.TrustDomain = foreignTD
		c.FederatesWith = []federated.Domain{{
			TrustDomain: td.Name(), URL: "https://" + a.config.BundleEndpoint.Listen + "/", Profile: "https_spiffe",
			EndpointID: "spiffe://" + td.Name() + "/writ/ca", BundleFile: begin,
		}}
	})
	for path, want := range map[string]codes.Code{"/writ/node/n1": codes.OK, "/writ/pilot": codes.OK, "/ns/default/sa/x": codes.PermissionDenied} {
		stream, err := capb.NewFederationClient(b.connAs(b.mint("spiffe://"+foreignTD+path))).WatchFederated(t.Context(), &capb.WatchFederatedRequest{})
		if err != nil {
			t.Fatal(err)
		}
		list, err := stream.Recv()
		if wantCode(t, err, want); err != nil {
			continue
		}
		got := list.GetBundles()
		if len(got) != 1 || got[0].GetTrustDomain() != td.Name() || len(got[0].GetRoots()) != 1 || !bytes.Equal(got[0].GetRoots()[0], first.X509Authorities()[0].Raw) {
			t.Errorf("%s got %v", path, list)
		}
		if keys, err := jwtbundle.Parse(td, got[0].GetJwks()); err != nil || !keys.Equal(a.jwks()) {
			t.Errorf("%s got the keys %s, %v", path, got[0].GetJwks(), err)
		}
	}
	proctest.Until(t, testBudget, "the bundle is fetched and kept", func() bool {
		kept, _ := filepath.Glob(filepath.Join(b.config.State, foreignDir, "*"))
		return len(kept) == 1
	})
}

// bundleOf fetches from an authority's endpoint.
func bundleOf(t *testing.T, h *harness) (*spiffebundle.Bundle, error) {
	t.Helper()
	return federation.FetchBundle(t.Context(), td, "https://"+h.config.BundleEndpoint.Listen+"/", federation.WithSPIFFEAuth(h.bundle(), spiffeid.RequireFromPath(td, "/writ/ca")))
}
