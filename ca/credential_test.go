package ca

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/credential"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// What services and node agents use to join and renew works with the authority:
// one token, then its own certificate, also over a restart of either.
func TestCredentialSource(t *testing.T) {
	t.Parallel()
	h := start(t, func(c *Config) { c.ServiceTTL = config.Duration(minTTL) })
	dir := t.TempDir()
	cfg := credential.Config{
		CA: h.config.Listen, TrustBundle: h.config.trustBundle(), TokenFile: filepath.Join(dir, "token"),
		Dir: filepath.Join(dir, "identity"), TrustDomain: td.Name(),
	}
	if err := os.WriteFile(cfg.TokenFile, []byte(h.token(pilotID)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString(pilotID)
	log := slog.New(slog.DiscardHandler)
	source, err := credential.New(t.Context(), cfg, id, log)
	if err != nil {
		t.Fatal(err)
	}
	first := notAfter(t, source)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	h.restart()
	h.eventually("the certificate is renewed", func() bool { return notAfter(t, source).After(first) })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := credential.New(t.Context(), cfg, id, log); err != nil {
		t.Fatalf("a restart needs a new token: %v", err)
	}
	got := h.ledger(&capb.ListCertificatesRequest{SpiffeId: pilotID})
	if len(got) < 2 || got[0].GetRequester() != "join-token" || got[1].GetRequester() != pilotID {
		t.Fatalf("ledger: %v", got)
	}
}

// notAfter is when a source's certificate expires.
func notAfter(t *testing.T, source x509svid.Source) time.Time {
	t.Helper()
	svid, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid.Certificates[0].NotAfter
}
