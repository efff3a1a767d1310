package ca

import (
	"context"
	"crypto/x509"
	"time"

	istiopb "istio.io/api/security/v1alpha1"

	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/root"
)

// istio implements Istio's IstioCertificateService, for clients written for
// istiod or istio-csr. It is served on the admin socket: the identity is the one
// in the certificate request, and the caller may have any.
type istio struct {
	istiopb.UnimplementedIstioCertificateServiceServer

	a *Authority
}

// CreateCertificate implements istio.v1.auth.IstioCertificateService. The chain in
// the response goes from the leaf to the root, as that contract says.
func (s *istio) CreateCertificate(ctx context.Context, req *istiopb.IstioCertificateRequest) (*istiopb.IstioCertificateResponse, error) {
	begin, o := s.a.now(), order{kind: kindIstio, requester: administrator(ctx)}
	cert, err := s.create(ctx, &o, req)
	s.a.answer(ctx, o, begin, cert, err)
	if err != nil {
		return nil, err
	}
	resp := &istiopb.IstioCertificateResponse{CertChain: []string{string(root.PEM(cert))}}
	for _, c := range s.a.signer.Intermediates() {
		resp.CertChain = append(resp.CertChain, string(root.PEM(c)))
	}
	resp.CertChain = append(resp.CertChain, string(root.PEM(s.a.bundle.X509Authorities()...)))
	return resp, nil
}

func (s *istio) create(ctx context.Context, o *order, req *istiopb.IstioCertificateRequest) (*x509.Certificate, error) {
	var err error
	if o.csr, err = csr.ParsePEM([]byte(req.GetCsr())); err != nil {
		return nil, refuse(invalid, "%v", err)
	}
	if o.csr.ID.IsZero() {
		return nil, refuse(invalid, "the certificate request names no SPIFFE ID; put one URI into its subjectAltName")
	}
	o.id = o.csr.ID
	seconds := req.GetValidityDuration()
	if seconds < 0 {
		return nil, refuse(invalid, "validity_duration is negative")
	}
	// Far more than anybody gets, and a Duration can hold it.
	const longest = int64(10 * 365 * 24 * 60 * 60)
	o.ttl = time.Duration(min(seconds, longest)) * time.Second
	return s.a.issue(ctx, *o)
}
