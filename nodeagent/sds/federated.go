package sds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// spiffeValidator is the extension of Envoy that has roots for each trust domain and
// chooses them by the SPIFFE ID of the peer.
const spiffeValidator = "envoy.tls.cert_validator.spiffe"

// Foreign is another trust domain.
type Foreign struct {
	TrustDomain string
	// Version is another one when the roots are.
	Version string
	// Roots are in PEM. They have to vouch for names of the trust domain alone: the
	// validator does not see to that (package foreign).
	Roots []byte
}

// SameForeign compares trust domains and versions.
func SameForeign(a, b []Foreign) bool {
	return slices.EqualFunc(a, b, func(x, y Foreign) bool { return x.TrustDomain == y.TrustDomain && x.Version == y.Version })
}

// federatedSecret is for the roots of the own trust domain with their revocation
// lists, and those of the others, in PEM. The version begins with that of the own.
//
// The validator reads lists from the bundle itself and checks every certificate of a
// chain, not the leaf alone: with an authority between leaf and root there would have
// to be a list of both. Lists are used only if there is one of each root.
func federatedSecret(trustDomain string, bundle, crls []byte, foreign []Foreign) (secret, error) {
	own := make([]byte, 0, len(bundle)+len(crls))
	own = append(append(own, bundle...), crls...)
	domains := []*tlsv3.SPIFFECertValidatorConfig_TrustDomain{{Name: trustDomain, TrustBundle: inline(own)}}
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "%s\n%d\n%s", trustDomain, len(crls), crls)
	for _, f := range foreign {
		domains = append(domains, &tlsv3.SPIFFECertValidatorConfig_TrustDomain{Name: f.TrustDomain, TrustBundle: inline(f.Roots)})
		_, _ = fmt.Fprintf(sum, "\n%s %s", f.TrustDomain, f.Version)
	}
	validator, err := anypb.New(&tlsv3.SPIFFECertValidatorConfig{TrustDomains: domains})
	if err != nil {
		return secret{}, fmt.Errorf("secret %s: %w", NameFederated, err)
	}
	return newSecret(rootVersion(bundle)+crlMark+hex.EncodeToString(sum.Sum(nil)[:8]), &tlsv3.Secret{
		Name: NameFederated,
		Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			CustomValidatorConfig: &corev3.TypedExtensionConfig{Name: spiffeValidator, TypedConfig: validator},
		}},
	})
}
