package bundleendpoint

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/net/netutil"

	"github.com/writ-mesh/writ/ca/certfile"
	"github.com/writ-mesh/writ/internal/listen"
)

// maxConnections bounds the connections at one time: anybody may connect.
const maxConnections = 512

// Serve opens the endpoint for the bundle of a trust domain; what it returns serves
// until its context ends. own is for https_spiffe.
func Serve(c Config, td spiffeid.TrustDomain, bundles spiffebundle.Source, own x509svid.Source, log *slog.Logger) (func(context.Context) error, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if c.NeedsSVID() {
		config.GetCertificate = tlsconfig.GetCertificate(own)
	} else {
		files, err := certfile.Open(c.CertFile, c.KeyFile, log)
		if err != nil {
			return nil, fmt.Errorf("bundle_endpoint: %w", err)
		}
		config.GetCertificate = files.Get
	}
	handler, err := federation.NewHandler(td, bundles)
	if err != nil {
		return nil, fmt.Errorf("bundle_endpoint: %w", err)
	}
	l, err := listen.Listen(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("bundle_endpoint: %w", err)
	}
	s := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		TLSConfig: config,
	}
	l = netutil.LimitListener(l, maxConnections)
	return func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { _ = s.Close() })()
		if err := s.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("bundle_endpoint: %w", err)
		}
		return ctx.Err()
	}, nil
}
