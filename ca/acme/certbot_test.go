package acme

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// Debian's certbot gets a certificate and revokes it, at a server with a certificate
// that the authority issued to it.
func TestCertbot(t *testing.T) {
	t.Parallel()
	certbot, err := exec.LookPath("certbot")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("certbot is missing (Debian package certbot)")
		}
		t.Skip("certbot is missing (Debian package certbot)")
	}
	const name = "shop.example.test"
	store, port, dir := ledgertest.NewMemory(), proctest.Port(t), t.TempDir()
	w := newWorld(t, store, func(c *Config) {
		c.Listen = proctest.Address(t)
		_, listening, err := net.SplitHostPort(c.Listen)
		if err != nil {
			t.Fatal(err)
		}
		c.URL, c.HTTPPort = "https://localhost:"+listening, port
	})
	serve, err := Open(t.Context(), w.config, Options{
		Authority: w.auth, Store: store, Root: w.auth.root.Cert, Now: time.Now, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		Wait: func(context.Context, string, net.Addr) time.Duration { return 0 },
		Watch: func(ctx context.Context, f func(ledger.Update, bool) error) error {
			return store.Watch(ctx, Prefix, func(u ledger.Update) error { return f(u, false) })
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	proctest.Background(t, serve)
	root := filepath.Join(dir, "root.pem")
	if err := os.WriteFile(root, w.auth.root.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		all := append(args, "-n", "--server", w.config.URL+"/acme/directory", "--config-dir", dir+"/config", "--work-dir", dir+"/work", "--logs-dir", dir+"/logs")
		cmd := exec.CommandContext(t.Context(), certbot, all...)
		cmd.Env = append(os.Environ(), "REQUESTS_CA_BUNDLE="+root)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("certbot %s: %v\n%s", args[0], err, out)
		}
	}
	leaf := func() *x509.Certificate {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(dir, "config/live", name, "fullchain.pem"))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(data)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: w.auth.root.Pool(), DNSName: name}); err != nil {
			t.Error(err)
		}
		return cert
	}
	obtain := []string{
		"certonly", "--standalone", "--http-01-port", strconv.Itoa(port), "--http-01-address", "127.0.0.1", "-d", name, "--agree-tos", "--register-unsafely-without-email",
		"--eab-kid", externalID, "--eab-hmac-key=" + base64.RawURLEncoding.EncodeToString(w.key), // which may begin with a dash
	}
	run(obtain...)
	cert := leaf()
	run("revoke", "--cert-name", name, "--reason", "keycompromise", "--no-delete-after-revoke")
	if reason, ok := w.auth.revoked[serialOf(cert)]; !ok || reason != 1 {
		t.Errorf("revoked: %v", w.auth.revoked)
	}
}
