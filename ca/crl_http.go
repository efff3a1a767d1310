package ca

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/writ-mesh/writ/internal/rpc"
)

// CRLConfig says where certificate revocation lists are served over HTTP. They are
// signed, and secret from nobody.
type CRLConfig struct {
	// Listen is host:port or unix:///path; empty for nowhere.
	Listen string `yaml:"listen"`
}

// serveCRL serves the lists that Envoys enforce, byte for byte: /crl.pem has all,
// /crl/KEYID.crl that of one authority in DER.
func serveCRL(c CRLConfig, a *Authority) (func(context.Context) error, error) {
	l, err := rpc.Listen(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("crl: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /crl.pem", a.allCRLs)
	mux.HandleFunc("GET /crl/{file}", a.oneCRL)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	return func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { _ = s.Close() })()
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("crl: %w", err)
		}
		return ctx.Err()
	}, nil
}

func (a *Authority) allCRLs(w http.ResponseWriter, _ *http.Request) {
	crls := a.revocations.current.Load().crls
	w.Header().Set("Content-Type", "application/x-pem-file")
	for _, id := range slices.Sorted(maps.Keys(crls)) {
		if err := pem.Encode(w, &pem.Block{Type: "X509 CRL", Bytes: crls[id]}); err != nil {
			return // the client has gone
		}
	}
}

func (a *Authority) oneCRL(w http.ResponseWriter, r *http.Request) {
	for id, der := range a.revocations.current.Load().crls {
		if id+".crl" == r.PathValue("file") {
			w.Header().Set("Content-Type", "application/pkix-crl")
			_, _ = w.Write(der) // the client may have gone
			return
		}
	}
	http.NotFound(w, r)
}
