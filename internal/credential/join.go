package credential

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/x509proof"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// join says by what this service proves who it is when it has no valid
// certificate, besides the one-time token. The files are read anew at each try.
type join struct {
	// KubernetesTokenFile holds a token of the pod's service account, which the
	// cluster projects for the authority's audience.
	KubernetesTokenFile string `yaml:"kubernetes_token_file"`
	// CertFile and KeyFile are a chain of another authority, leaf first, and
	// its key, in PEM.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

func (j join) some() bool { return j.KubernetesTokenFile != "" || j.CertFile != "" }

func (j join) validate() error {
	if (j.CertFile == "") != (j.KeyFile == "") {
		return errors.New("credential: join.cert_file and join.key_file: want both or none")
	}
	return nil
}

// proofs are requests to join for csr, each with a proof of who this is: what the
// configuration has besides the token, then the token. The error says why one is
// missing, and is nil if none is.
func (s *Source) proofs(csr []byte) ([]*capb.JoinRequest, error) {
	var out []*capb.JoinRequest
	var errs []error
	add := func(req *capb.JoinRequest, err error) {
		if err != nil {
			errs = append(errs, err)
		} else {
			out = append(out, req)
		}
	}
	if s.cfg.Join.KubernetesTokenFile != "" {
		add(s.kubernetesProof(csr))
	}
	if s.cfg.Join.CertFile != "" {
		add(s.x509Proof(csr))
	}
	if s.cfg.TokenFile != "" {
		add(s.tokenProof(csr))
	}
	return out, errors.Join(errs...)
}

func (s *Source) tokenProof(csr []byte) (*capb.JoinRequest, error) {
	token, err := os.ReadFile(s.cfg.TokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("join token: %s does not exist; where the authority runs, make one: writ certs join-token --admin unix:///SOCKET %s=%s",
			s.cfg.TokenFile, strings.TrimPrefix(s.id.Path(), "/"), s.cfg.TokenFile)
	}
	if err != nil {
		return nil, fmt.Errorf("join token: %w", err)
	}
	return &capb.JoinRequest{Csr: csr, Proof: &capb.JoinRequest_Token{Token: strings.TrimSpace(string(token))}}, nil
}

func (s *Source) kubernetesProof(csr []byte) (*capb.JoinRequest, error) {
	token, err := os.ReadFile(s.cfg.Join.KubernetesTokenFile)
	if err != nil {
		return nil, fmt.Errorf("service-account token: %w", err)
	}
	return &capb.JoinRequest{Csr: csr, Proof: &capb.JoinRequest_KubernetesToken{KubernetesToken: strings.TrimSpace(string(token))}}, nil
}

func (s *Source) x509Proof(csr []byte) (*capb.JoinRequest, error) {
	pair, err := tls.LoadX509KeyPair(s.cfg.Join.CertFile, s.cfg.Join.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate to join with: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("certificate to join with: a key of type %T cannot sign", pair.PrivateKey)
	}
	at := s.now()
	signature, err := x509proof.Sign(key, csr, at)
	if err != nil {
		return nil, fmt.Errorf("certificate to join with: %w", err)
	}
	return &capb.JoinRequest{Csr: csr, Proof: &capb.JoinRequest_X509{
		X509: &capb.X509Proof{Chain: pair.Certificate, Time: at.Unix(), Signature: signature},
	}}, nil
}

func (s *Source) join(ctx context.Context) error {
	ca, err := identity.Service(s.td, identity.CA)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(s.cfg.CA, grpc.WithDisableServiceConfig(),
		grpc.WithTransportCredentials(credentials.NewTLS(s.tls13(tlsconfig.TLSClientConfig(s.joinBundle(), tlsconfig.AuthorizeID(ca))))))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return s.obtain(ctx, true, func(ctx context.Context, csr []byte) (*capb.CertificateResponse, error) {
		reqs, err := s.proofs(csr)
		errs := []error{err}
		for _, req := range reqs {
			resp, err := capb.NewCertificateAuthorityClient(conn).Join(ctx, req)
			if err == nil {
				return resp, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	})
}
