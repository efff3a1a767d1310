package upstream

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/writ-mesh/writ/ca/plugged"
)

const (
	// patience is for one request in all.
	patience = 15 * time.Second
	// tokenLife is how long a provisioner's token may be used.
	tokenLife = 5 * time.Minute
	// maxAnswer bounds an answer in bytes, maxWords what of it gets into an error.
	maxAnswer = 1 << 20
	maxWords  = 300
)

// stepCA is a step-ca, by its API: POST /1.0/sign with a certificate request and a
// token of a provisioner. The files are read for each request, so that they can be
// replaced.
type stepCA struct{ c Config }

// signRequest and signAnswer are those of the API.
type signRequest struct {
	CSR      string `json:"csr"`
	OTT      string `json:"ott"`
	NotAfter string `json:"notAfter"`
}

type signAnswer struct {
	Certificate string   `json:"crt"`
	CA          string   `json:"ca"`
	Chain       []string `json:"certChain"`
}

// Sign implements Authority.
func (s *stepCA) Sign(ctx context.Context, csr *x509.CertificateRequest, life time.Duration) ([]*x509.Certificate, error) {
	token, err := s.token(csr)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(signRequest{
		CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw})), OTT: token, NotAfter: life.String(),
	})
	if err != nil {
		return nil, err
	}
	data, err := s.post(ctx, body)
	if err != nil {
		return nil, err
	}
	var a signAnswer
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, fmt.Errorf("%s: the answer cannot be read: %w", s.c.URL, err)
	}
	if len(a.Chain) == 0 {
		a.Chain = []string{a.Certificate, a.CA}
	}
	chain, err := plugged.ParseCertificates([]byte(strings.Join(a.Chain, "\n")))
	if err != nil {
		return nil, fmt.Errorf("%s: the chain in the answer: %w", s.c.URL, err)
	}
	return chain, nil
}

func (s *stepCA) post(ctx context.Context, body []byte) ([]byte, error) {
	roots, err := plugged.LoadCertificates(s.c.RootFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(s.c.URL, "/")+"/1.0/sign", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.c.URL, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("%s answers %s: %q", s.c.URL, resp.Status, data[:min(len(data), maxWords)])
	}
	return data, nil
}

// claims are those of a provisioner's token beside the registered ones.
type claims struct {
	jwt.Claims

	SANs []string `json:"sans"`
}

// token makes a provisioner's token, which is good for that request once.
func (s *stepCA) token(csr *x509.CertificateRequest) (string, error) {
	key, err := plugged.LoadKey(s.c.KeyFile)
	if err != nil {
		return "", err
	}
	audience := strings.TrimSuffix(s.c.URL, "/") + "/1.0/sign"
	opts := (&jose.SignerOptions{}).WithType("JWT")
	if s.c.CertFile != "" {
		chain, err := x5c(s.c.CertFile)
		if err != nil {
			return "", err
		}
		opts = opts.WithHeader("x5c", chain)
		audience += "#x5c/" + s.c.Provisioner
	} else {
		jwk := jose.JSONWebKey{Key: key.Public()}
		sum, err := jwk.Thumbprint(crypto.SHA256)
		if err != nil {
			return "", fmt.Errorf("%s: %w", s.c.KeyFile, err)
		}
		opts = opts.WithHeader("kid", base64.RawURLEncoding.EncodeToString(sum))
	}
	alg, err := algorithm(key)
	if err != nil {
		return "", fmt.Errorf("%s: %w", s.c.KeyFile, err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		return "", fmt.Errorf("%s: %w", s.c.KeyFile, err)
	}
	id := make([]byte, 32)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	now := time.Now()
	c := claims{Claims: jwt.Claims{
		ID: hex.EncodeToString(id), Issuer: s.c.Provisioner, Subject: csr.Subject.CommonName, Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(tokenLife)),
	}}
	for _, u := range csr.URIs {
		c.SANs = append(c.SANs, u.String())
	}
	return jwt.Signed(signer).Claims(c).Serialize()
}

func x5c(path string) ([]string, error) {
	certs, err := plugged.LoadCertificates(path)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range certs {
		out = append(out, base64.StdEncoding.EncodeToString(c.Raw))
	}
	return out, nil
}

// algorithm is the JWS algorithm of a key.
func algorithm(key crypto.Signer) (jose.SignatureAlgorithm, error) {
	switch k := key.Public().(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		case elliptic.P521():
			return jose.ES512, nil
		}
	case *rsa.PublicKey:
		return jose.RS256, nil
	case ed25519.PublicKey:
		return jose.EdDSA, nil
	}
	return "", fmt.Errorf("a key of type %T signs no token", key.Public())
}
