package translate

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// TestLiveImpersonators: certificates that are none of a workload of the mesh open no
// connection to an Envoy, though each is signed under the root that it trusts.
func TestLiveImpersonators(t *testing.T) {
	t.Parallel()
	m := newLive(t, 23)
	server := m.workload("server-1", "default", "server", map[string]string{"app": "server"}, port(t, "http", 9080))
	m.service("server", "default", server)
	m.apply(`
kind: PeerAuthentication
metadata: {name: strict}
spec: {selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}}
`)
	m.echo(server, nil)
	m.start()

	const client = "spiffe://cluster.local/ns/default/sa/client"
	call := func(c *tls.Config, chain ...tls.Certificate) error {
		t.Helper()
		c.InsecureSkipVerify, c.MinVersion, c.Certificates = true, tls.VersionTLS13, chain
		tr := &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}
		resp, err := tr.RoundTrip(mustRequest(t, fmt.Sprintf("https://%s:9080/", server.Address)))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	}
	leaf := func(id string, change ...func(*x509.Certificate)) tls.Certificate {
		t.Helper()
		l := pkitest.Leaf(id, time.Hour)
		for _, f := range change {
			f(l)
		}
		return m.ca.Pair(t, l)
	}
	// under is the client's certificate and who is above it, the one that signs it first.
	under := func(above ...*pkitest.Root) tls.Certificate {
		t.Helper()
		pair := above[0].Pair(t, pkitest.Leaf(client, time.Hour))
		for _, a := range above {
			pair.Certificate = append(pair.Certificate, a.Cert.Raw)
		}
		return pair
	}
	last := m.ca.Signing(t, noFurther())
	for what, good := range map[string]tls.Certificate{
		"a workload": leaf(client), "a workload under an intermediate": under(m.ca.Middle(t)),
		// Nobody makes one who could not be a workload anyway.
		"two identities": leaf(client, func(l *x509.Certificate) {
			l.URIs = append(l.URIs, &url.URL{Scheme: "spiffe", Host: "example.org", Path: "/a"})
		}),
	} {
		if err := call(new(tls.Config), good); err != nil {
			t.Fatalf("%s is refused: %v", what, err)
		}
	}
	for what, bad := range map[string]tls.Certificate{
		"a node agent":                  leaf("spiffe://cluster.local/writ/node/n1"),
		"a service of Writ":             leaf("spiffe://cluster.local/writ/pilot"),
		"a server of a DNS name":        leaf("", func(l *x509.Certificate) { l.DNSNames = []string{"cluster.local", "client.default.svc.cluster.local"} }),
		"an identity as DNS name":       leaf("", func(l *x509.Certificate) { l.DNSNames = []string{client} }),
		"an identity as common name":    leaf("", func(l *x509.Certificate) { l.Subject.CommonName = client }),
		"no name":                       leaf(""),
		"another trust domain":          leaf("spiffe://example.org/ns/default/sa/client"),
		"a trust domain that begins so": leaf("spiffe://cluster.local.example.org/ns/default/sa/client"),
		"a trust domain in capitals":    leaf("spiffe://CLUSTER.LOCAL/ns/default/sa/client"),
		"a trust domain with a port":    leaf("spiffe://cluster.local:443/ns/default/sa/client"),
		"the trust domain as user":      leaf("spiffe://cluster.local@example.org/ns/default/sa/client"),
		"an encoded slash": leaf("", func(l *x509.Certificate) {
			l.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Opaque: "//cluster.local/ns%2Fdefault/sa/client"}}
		}),
		"another scheme":                 leaf("https://cluster.local/ns/default/sa/client"),
		"expired":                        leaf(client, func(l *x509.Certificate) { l.NotAfter = time.Now().Add(-time.Second) }),
		"not valid yet":                  leaf(client, func(l *x509.Certificate) { l.NotBefore = time.Now().Add(time.Minute) }),
		"for servers only":               leaf(client, func(l *x509.Certificate) { l.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"signed by a workload":           under(m.ca.Signing(t, pkitest.Leaf(client, time.Hour))),
		"an intermediate for elsewhere":  under(m.ca.Signing(t, constrained("example.org"))),
		"an intermediate's intermediate": under(last.Middle(t), last),
		"another root":                   newAuthority(t).Pair(t, pkitest.Leaf(client, time.Hour)),
	} {
		if err := call(new(tls.Config), bad); err == nil {
			t.Errorf("%s is let in", what)
		}
	}

	t.Run("a session does not outlive its certificate", func(t *testing.T) {
		life := 2 * time.Second
		short := leaf(client, func(l *x509.Certificate) { l.NotAfter = time.Now().Add(life).Truncate(time.Second) })
		sessions := tls.NewLRUClientSessionCache(1)
		if err := call(&tls.Config{ClientSessionCache: sessions}, short); err != nil {
			t.Fatal(err)
		}
		end := short.Leaf.NotAfter.Add(time.Second)
		proctest.Until(t, bound, "the certificate has expired", func() bool { return time.Now().After(end) })
		if err := call(&tls.Config{ClientSessionCache: sessions}, short); err == nil {
			t.Error("an expired certificate is let in by a session from when it was good")
		}
	})
}

// constrained is an intermediate that may sign for a trust domain alone.
func constrained(trustDomain string) *x509.Certificate {
	c := pkitest.Intermediate()
	c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{trustDomain}, true
	return c
}

// noFurther is an intermediate that may sign leaves alone.
func noFurther() *x509.Certificate {
	c := pkitest.Intermediate()
	c.MaxPathLen, c.MaxPathLenZero = 0, true
	return c
}
