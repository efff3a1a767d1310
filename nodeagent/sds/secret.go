package sds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/nodeagent/svid"
)

// The names of the secrets, as in Istio.
const (
	// NameDefault is the workload's key and certificate chain.
	NameDefault = "default"
	// NameRoot is the trust bundle as a validation context.
	NameRoot = "ROOTCA"
	// NameFederated is the trust bundle with those of the other trust domains, each
	// for itself. Istio has no such name.
	NameFederated = "FEDERATED"
)

// typeURL is that of every resource served here.
const typeURL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// known tells whether a secret of that name exists or will.
func known(name string) bool {
	return name == NameDefault || name == NameRoot || name == NameFederated
}

// secret is a resource in the form that is sent.
type secret struct {
	version string
	body    *anypb.Any
	// authority is the key id of a certificate's issuer.
	authority string
}

// secrets are the ones that can be sent now, by name.
type secrets map[string]secret

func certificateSecret(v *svid.SVID) (secret, error) {
	s, err := newSecret(v.Serial(), &tlsv3.Secret{
		Name: NameDefault,
		Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(v.ChainPEM()),
			PrivateKey:       inline(v.KeyPEM()),
		}},
	})
	s.authority = v.Authority()
	return s, err
}

// rootSecret is for a trust bundle and certificate revocation lists in PEM, of which
// there may be none. The version begins with that of the bundle.
func rootSecret(bundle, crls []byte) (secret, error) {
	v := &tlsv3.CertificateValidationContext{TrustedCa: inline(bundle)}
	version := rootVersion(bundle)
	if len(crls) > 0 {
		// Authorities between the leaf and the root are the root's affair.
		v.Crl, v.OnlyVerifyLeafCertCrl = inline(crls), true
		version += crlMark + rootVersion(crls)
	}
	return newSecret(version, &tlsv3.Secret{Name: NameRoot, Type: &tlsv3.Secret_ValidationContext{ValidationContext: v}})
}

// crlMark is between the two parts of the version of a trust bundle with something
// else.
const crlMark = "+"

func rootVersion(bundle []byte) string {
	sum := sha256.Sum256(bundle)
	return hex.EncodeToString(sum[:8])
}

func newSecret(version string, m *tlsv3.Secret) (secret, error) {
	body, err := anypb.New(m)
	if err != nil {
		return secret{}, fmt.Errorf("secret %s: %w", m.GetName(), err)
	}
	return secret{version: version, body: body}, nil
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}
