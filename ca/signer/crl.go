package signer

import (
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/smallstep/certificates/cas/apiv1"
)

// CRL signs the certificate revocation list that the template describes, in DER. An
// authority outside may not be able to.
func (s *Signer) CRL(template *x509.RevocationList) ([]byte, error) {
	service, ok := s.service.(apiv1.CertificateAuthorityCRLGenerator)
	if !ok {
		return nil, errors.New("sign a certificate revocation list: an authority of this kind cannot")
	}
	resp, err := service.CreateCRL(&apiv1.CreateCRLRequest{RevocationList: template})
	if err != nil {
		return nil, fmt.Errorf("sign a certificate revocation list: %w", err)
	}
	return resp.CRL, nil
}
