package ca

import (
	"context"
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
	cert, err := s.a.fulfil(ctx, order{kind: kindIstio, requester: administrator(ctx)}, func(o *order) error { return fromIstio(o, req) })
	if err != nil {
		return nil, err
	}
	t, err := s.a.covering(cert)
	if err != nil {
		return nil, err
	}
	resp := &istiopb.IstioCertificateResponse{CertChain: []string{string(root.PEM(cert))}}
	for _, c := range t.signer.Intermediates() {
		resp.CertChain = append(resp.CertChain, string(root.PEM(c)))
	}
	resp.CertChain = append(resp.CertChain, string(root.PEM(t.bundle.X509Authorities()...)))
	return resp, nil
}

// fromIstio fills in an order from a request of that contract.
func fromIstio(o *order, req *istiopb.IstioCertificateRequest) (err error) {
	if o.csr, err = csr.ParsePEM([]byte(req.GetCsr())); err != nil {
		return refuse(invalid, "%v", err)
	}
	if o.csr.ID.IsZero() {
		return refuse(invalid, "the certificate request names no SPIFFE ID; put one URI into its subjectAltName")
	}
	o.id = o.csr.ID
	seconds := req.GetValidityDuration()
	if seconds < 0 {
		return refuse(invalid, "validity_duration is negative")
	}
	// Far more than anybody gets, and a Duration can hold it.
	const longest = int64(10 * 365 * 24 * 60 * 60)
	o.ttl = time.Duration(min(seconds, longest)) * time.Second
	return nil
}
