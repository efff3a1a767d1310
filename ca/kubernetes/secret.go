package kubernetes

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// What a Secret looks like: type and files are those of Istio's Citadel, so that pods
// which mount its Secrets find the same.
const (
	secretType = "istio.io/key-and-cert"
	chainFile  = "cert-chain.pem"
	keyFile    = "key.pem"
	rootsFile  = "root-cert.pem"
)

// The marks of a Secret that is ours; one that lacks any of them is somebody else's.
const (
	managedBy = "app.kubernetes.io/managed-by"
	manager   = "writ-ca"
	// spiffeID is the annotation with the identity that it is for.
	spiffeID = "writ.mesh/spiffe-id"
)

// secret is what is used of a Secret.
type secret struct {
	APIVersion string            `json:"apiVersion,omitempty"`
	Kind       string            `json:"kind,omitempty"`
	Metadata   metadata          `json:"metadata"`
	Type       string            `json:"type,omitempty"`
	Data       map[string][]byte `json:"data,omitempty"`
}

// material is a key with its certificate chain, leaf first, in the form of a Secret.
type material struct {
	leaf       *x509.Certificate
	chain, key []byte
}

// newMaterial makes a key and has it certified.
func newMaterial(ctx context.Context, issuer Issuer, id spiffeid.ID) (*material, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	chain, err := issuer.Issue(ctx, id, key.Public())
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &material{leaf: chain[0], chain: certificates(chain), key: encode("PRIVATE KEY", der)}, nil
}

func certificates(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, encode("CERTIFICATE", c.Raw)...)
	}
	return out
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// marked tells whether the metadata is that of a Secret of ours for id.
func marked(m metadata, id spiffeid.ID) bool {
	return m.Labels[managedBy] == manager && m.Annotations[spiffeID] == id.String()
}

// content checks the key and the certificate of a Secret, whoever wrote them, and
// returns the certificate. The error says why another is needed.
func (s *secret) content(id spiffeid.ID, t Trust, now time.Time) (*x509.Certificate, error) {
	svid, err := x509svid.Parse(s.Data[chainFile], s.Data[keyFile])
	if err != nil {
		return nil, fmt.Errorf("its key and certificate are not what was written: %w", err)
	}
	if svid.ID != id {
		return nil, fmt.Errorf("its certificate is that of %s", svid.ID)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, t.Bundle, x509svid.WithTime(now)); err != nil {
		return nil, fmt.Errorf("its certificate is not good any more: %w", err)
	}
	return svid.Certificates[0], nil
}

// ownedBy tells whether the Secret goes with the account that has that UID.
func (m metadata) ownedBy(uid string) bool {
	for _, o := range m.Owners {
		if o.Kind == "ServiceAccount" && o.UID == uid {
			return true
		}
	}
	return false
}

// secrets calls the API about the Secrets.
type secretsAPI struct{ c *Cluster }

func (a secretsAPI) url(n name, create bool) string {
	u := collection(a.c.cfg.API, n.namespace, "secrets")
	if !create {
		u += "/" + url.PathEscape(n.name)
	}
	return u
}

// marks reads who the Secret of that name belongs to, and nothing that it holds;
// errNoSecret if there is none.
func (a secretsAPI) marks(ctx context.Context, n name) (metadata, error) {
	api := a.c.client(metadataOnly)
	data, err := api.Call(ctx, http.MethodGet, a.url(n, false), nil)
	switch {
	case is(err, http.StatusNotFound):
		return metadata{}, errNoSecret
	case err != nil:
		return metadata{}, err
	}
	var o object
	if err := json.Unmarshal(data, &o); err != nil {
		return metadata{}, fmt.Errorf("secret %s: %w", n, err)
	}
	return o.Metadata, nil
}

var errNoSecret = errors.New("there is no such Secret")

// read reads a Secret of ours.
func (a secretsAPI) read(ctx context.Context, n name) (*secret, error) {
	return a.call(ctx, http.MethodGet, a.url(n, false), n, nil)
}

// create makes a Secret.
func (a secretsAPI) create(ctx context.Context, n name, want *secret) (*secret, error) {
	return a.call(ctx, http.MethodPost, a.url(n, true), n, want)
}

// patch changes what change has and leaves the rest, if the Secret still has the
// version that change has.
func (a secretsAPI) patch(ctx context.Context, n name, change *secret) (*secret, error) {
	return a.call(ctx, http.MethodPatch, a.url(n, false), n, change)
}

func (a secretsAPI) call(ctx context.Context, method, url string, n name, body *secret) (*secret, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	api := a.c.client("")
	answer, err := api.Call(ctx, method, url, data)
	switch {
	case is(err, http.StatusNotFound):
		return nil, errNoSecret
	case err != nil:
		return nil, err
	}
	s := new(secret)
	if err := json.Unmarshal(answer, s); err != nil {
		return nil, errors.New("the API's answer about the Secret " + n.String() + " cannot be read") // with its words it would have the key
	}
	if s.Metadata.Version == "" || s.Metadata.Name != n.name || s.Metadata.Namespace != n.namespace {
		return nil, fmt.Errorf("the API's answer is not about the Secret %s", n)
	}
	return s, nil
}

// wanted is a Secret as it is to be made; without m as it is to be changed where only
// the roots are others.
func wanted(n name, id spiffeid.ID, account string, uid string, roots []byte, m *material) *secret {
	s := &secret{
		Metadata: metadata{
			Labels: map[string]string{managedBy: manager}, Annotations: map[string]string{spiffeID: id.String()},
			// Kubernetes removes the Secret along with the account.
			Owners: []owner{{APIVersion: "v1", Kind: "ServiceAccount", Name: account, UID: uid}},
		},
		Data: map[string][]byte{rootsFile: roots},
	}
	if m != nil {
		s.Data[chainFile], s.Data[keyFile] = m.chain, m.key
	}
	return s
}

// full adds what only a new Secret has.
func (s *secret) full(n name) *secret {
	s.APIVersion, s.Kind, s.Type = "v1", "Secret", secretType
	s.Metadata.Namespace, s.Metadata.Name = n.namespace, n.name
	return s
}

// publicKey is what certificates are asked for.
type publicKey = crypto.PublicKey

// sameRoots tells whether the Secret has these roots.
func (s *secret) sameRoots(roots []byte) bool { return bytes.Equal(s.Data[rootsFile], roots) }
