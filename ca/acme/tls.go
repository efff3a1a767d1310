package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/writ-mesh/writ/ca/certfile"
)

// issueTime bounds how long a handshake waits for the server's own certificate, and
// retryIssue is the pause after a failure.
const (
	issueTime  = 5 * time.Second
	retryIssue = time.Second
)

// certificates gives the server's certificate: that of the files, or one that the
// authority issues.
func (s *server) certificates(c Config) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	if c.CertFile == "" {
		return (&selfIssued{s: s, name: c.hostname()}).get, nil
	}
	files, err := certfile.Open(c.CertFile, c.KeyFile, s.o.Log)
	if err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	return files.Get, nil
}

// selfIssued is the certificate that the authority issues for the server itself. Its
// key is in memory only. It is replaced at half life or when another authority
// signs, at the next handshake.
type selfIssued struct {
	s    *server
	name string

	mu      sync.Mutex
	current *tls.Certificate
	tried   time.Time
}

// get implements tls.Config.GetCertificate. One that cannot be replaced is served
// until it expires.
func (i *selfIssued) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.s.o.Now()
	if i.fresh(now) {
		return i.current, nil
	}
	if now.Sub(i.tried).Abs() >= retryIssue {
		i.tried = now
		ctx, cancel := context.WithTimeout(hello.Context(), issueTime)
		defer cancel()
		if err := i.renew(ctx); err != nil {
			i.s.o.Log.ErrorContext(ctx, "the ACME server gets no certificate", slog.Any("error", err))
		}
	}
	if i.current == nil {
		return nil, errors.New("the ACME server has no certificate yet")
	}
	return i.current, nil
}

func (i *selfIssued) fresh(now time.Time) bool {
	if i.current == nil {
		return false
	}
	c := i.current.Leaf
	half := c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
	return !now.Before(c.NotBefore) && now.Before(half) && i.s.o.Authority.Signs(c)
}

func (i *selfIssued) renew(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	chain, err := i.s.o.Authority.Issue(ctx, Order{Names: []string{i.name}, PublicKey: key.Public(), TTL: i.s.d.ttl, Actor: kind + " server"})
	if err != nil {
		return err
	}
	i.current = &tls.Certificate{PrivateKey: key, Leaf: chain[0], Certificate: rawChain(chain)}
	return nil
}

func rawChain(chain []*x509.Certificate) [][]byte {
	out := make([][]byte, len(chain))
	for i, c := range chain {
		out[i] = c.Raw
	}
	return out
}
