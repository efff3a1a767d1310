package kubernetes

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/kubetest"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// envoyYAML is an Envoy that has its key, certificate and roots from a mounted Secret
// and answers who its caller is.
const envoyYAML = `
node: {id: billing, cluster: billing}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: ADMIN}}}
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: PORT}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificate_sds_secret_configs: [{name: own, sds_config: {path_config_source: {path: DIR/own.yaml}, resource_api_version: V3}}]
            validation_context_sds_secret_config: {name: roots, sds_config: {path_config_source: {path: DIR/roots.yaml}, resource_api_version: V3}}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hello}}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
`

const (
	ownYAML   = `resources: [{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: own, tls_certificate: {certificate_chain: {filename: MOUNT/cert-chain.pem}, private_key: {filename: MOUNT/key.pem}, watched_directory: {path: MOUNT}}}]`
	rootsYAML = `resources: [{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: roots, validation_context: {trusted_ca: {filename: MOUNT/root-cert.pem}, watched_directory: {path: MOUNT}}}]`
)

// mount puts a Secret where a pod has it, as a kubelet does: the files are links to a
// link that is replaced, so that all of them change at once.
func mount(t *testing.T, dir string, s *secret) {
	t.Helper()
	version := "..v" + s.Metadata.Version
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, version), 0o700))
	for file, data := range s.Data {
		must(os.WriteFile(filepath.Join(dir, version, file), data, 0o600))
		if _, err := os.Lstat(filepath.Join(dir, file)); err != nil {
			must(os.Symlink(filepath.Join("..data", file), filepath.Join(dir, file)))
		}
	}
	must(os.Symlink(version, filepath.Join(dir, "..data_tmp")))
	must(os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
}

// call asks an Envoy with a certificate, and returns the Envoy's.
func call(address string, pair tls.Certificate, roots *x509.CertPool) (*x509.Certificate, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, //nolint:gosec // it has no DNS name; verified below
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			leaf, err := x509.ParseCertificate(raw[0])
			if err != nil {
				return err
			}
			_, err = leaf.Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
	}}}
	resp, err := client.Get("https://" + address) //nolint:noctx // the client has a bound
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "hello" {
		err = fmt.Errorf("%s %q", resp.Status, body)
	}
	return resp.TLS.PeerCertificates[0], err
}

// TestEnvoyWithMountedSecret: an Envoy that has the Secret as files shakes hands with
// them, and follows when they are rewritten, certificate and roots, without a restart
// and without a call that fails.
func TestEnvoyWithMountedSecret(t *testing.T) {
	t.Parallel()
	for _, bin := range envoytest.All(t) {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(bin))), func(t *testing.T) {
			t.Parallel()
			mountedSecret(t, bin)
		})
	}
}

func mountedSecret(t *testing.T, bin string) {
	f := kubetest.NewFake(t)
	f.Account(t, "shop", billing)
	h := follow(t, f.Cluster, "shop", withSecrets)
	s, leaf := h.good(billing, nil)
	dir, volume := t.TempDir(), t.TempDir()
	mount(t, volume, s)
	address := proctest.Address(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("PORT", port, "ADMIN", fmt.Sprint(proctest.Port(t)), "DIR", dir, "MOUNT", volume)
	for file, text := range map[string]string{"envoy.yaml": envoyYAML, "own.yaml": ownYAML, "roots.yaml": rootsYAML} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(fill.Replace(text)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	envoy := envoytest.Run(t, bin, filepath.Join(dir, "envoy.yaml"))

	old, next := h.authority.roots[0], pkitest.NewRoot(t, td.Name())
	both := old.Pool()
	both.AddCert(next.Cert)
	id := "spiffe://example.org/ns/shop/sa/web"
	byOld, byNext := old.Pair(t, pkitest.Leaf(id, time.Hour)), next.Pair(t, pkitest.Leaf(id, time.Hour))
	serves := func(want *x509.Certificate, callers ...tls.Certificate) {
		t.Helper()
		proctest.Eventually(t, budget, func() error {
			for _, c := range callers {
				got, err := call(address, c, both)
				if err != nil {
					return err
				}
				if !got.Equal(want) {
					return fmt.Errorf("it has certificate %d, want %d", got.SerialNumber, want.SerialNumber)
				}
			}
			return nil
		})
	}
	serves(leaf, byOld)
	if _, err := call(address, byNext, both); err == nil {
		t.Error("a caller of a strange root is let in")
	}

	never := startCalling(t, address, byOld, both)
	// The time is Envoy's, so that it is not put forward: a revoked one is replaced too.
	before := leaf
	h.authority.set(func() { h.authority.revoked[before.SerialNumber.String()] = true })
	s, leaf = h.good(billing, func(l *x509.Certificate, _ *secret) bool { return !l.Equal(before) })
	mount(t, volume, s)
	serves(leaf, byOld)

	h.authority.change(next, old)
	s, _ = h.good(billing, nil)
	mount(t, volume, s)
	serves(leaf, byOld, byNext)
	never()

	before = leaf
	h.authority.change(old, next)
	h.authority.set(func() { h.authority.revoked[before.SerialNumber.String()] = true })
	s, leaf = h.good(billing, func(l *x509.Certificate, _ *secret) bool { return l.CheckSignatureFrom(next.Cert) == nil })
	mount(t, volume, s)
	serves(leaf, byOld, byNext)
	h.authority.change(next)
	s, _ = h.good(billing, nil)
	mount(t, volume, s)
	proctest.Until(t, budget, "the old root counts no more", func() bool { _, err := call(address, byOld, both); return err != nil })
	serves(leaf, byNext)
	select {
	case <-envoy.Done():
		t.Error("Envoy ended")
	default:
	}
}

// startCalling calls again and again until the returned function is called, which fails
// t if a call failed.
func startCalling(t *testing.T, address string, pair tls.Certificate, roots *x509.CertPool) (end func()) {
	t.Helper()
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := call(address, pair, roots); err != nil {
				failed <- err
				return
			}
		}
	}()
	return func() {
		t.Helper()
		close(stop)
		if err := <-failed; err != nil {
			t.Errorf("a call failed: %v", err)
		}
	}
}
