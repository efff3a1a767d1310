package translate

import (
	"fmt"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// serverTLS is the server side of TLS at a gateway; nil if a secret that it
// names is not there.
func (t *Translator) serverTLS(p *model.Proxy, s *gatewayServer) (*tlsv3.DownstreamTlsContext, error) {
	in := s.GetTls()
	alpn := []string{"h2", "http/1.1"}
	if !s.http() {
		alpn = nil
	}
	if in.GetMode() == networking.ServerTLSSettings_ISTIO_MUTUAL {
		if !s.http() {
			alpn = []string{envoy.ALPN}
		}
		return envoy.DownstreamTLS(t.mesh, alpn), nil
	}
	common := &tlsv3.CommonTlsContext{TlsParams: t.serverTLSParams(in), AlpnProtocols: alpn}
	out := &tlsv3.DownstreamTlsContext{CommonTlsContext: common}
	secrets, ok := t.serverSecrets(p, s)
	if !ok {
		return nil, nil
	}
	if err := t.serverCertificates(common, s, secrets); err != nil {
		return nil, err
	}
	switch in.GetMode() {
	case networking.ServerTLSSettings_MUTUAL, networking.ServerTLSSettings_OPTIONAL_MUTUAL:
		v, err := t.clientValidation(p, s, secrets)
		if err != nil {
			return nil, err
		}
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v}
		envoy.EachTime(out)
		if in.GetMode() == networking.ServerTLSSettings_MUTUAL {
			out.RequireClientCertificate = yes()
		}
	}
	return out, nil
}

// serverSecrets are the secrets that the server names; not ok if one is missing.
func (t *Translator) serverSecrets(p *model.Proxy, s *gatewayServer) (secrets []*model.Secret, ok bool) {
	names := s.GetTls().GetCredentialNames()
	if len(names) == 0 && s.GetTls().GetCredentialName() != "" {
		names = []string{s.GetTls().GetCredentialName()}
	}
	for _, n := range names {
		secret := t.gatewaySecret(p, s, n)
		if secret == nil {
			return nil, false
		}
		secrets = append(secrets, secret)
	}
	return secrets, true
}

// gatewaySecret looks where the Gateway object is, then where its proxy runs, as
// Istio's documentation has it.
func (t *Translator) gatewaySecret(p *model.Proxy, s *gatewayServer, name string) *model.Secret {
	if secret := t.secret(s.object.Namespace, name); secret != nil {
		return secret
	}
	return t.secret(p.Namespace, name)
}

func (t *Translator) serverCertificates(common *tlsv3.CommonTlsContext, s *gatewayServer, secrets []*model.Secret) error {
	for _, secret := range secrets {
		common.TlsCertificates = append(common.TlsCertificates, &tlsv3.TlsCertificate{
			CertificateChain: inlineBytes(secret.Cert), PrivateKey: inlineBytes(secret.Key),
		})
	}
	if len(secrets) > 0 {
		return nil
	}
	in := s.GetTls()
	files := in.GetTlsCertificates()
	if len(files) == 0 {
		files = []*networking.ServerTLSSettings_TLSCertificate{{ServerCertificate: in.GetServerCertificate(), PrivateKey: in.GetPrivateKey()}}
	}
	for _, f := range files {
		if f.GetServerCertificate() == "" || f.GetPrivateKey() == "" {
			return fmt.Errorf("%s: server %d: tls needs credentialName, or serverCertificate and privateKey", s.object.Ref, s.index)
		}
		common.TlsCertificates = append(common.TlsCertificates, &tlsv3.TlsCertificate{
			CertificateChain: fileSource(t.file(f.GetServerCertificate())), PrivateKey: fileSource(t.file(f.GetPrivateKey())),
		})
	}
	return nil
}

// clientValidation says which client certificates are good.
func (t *Translator) clientValidation(p *model.Proxy, s *gatewayServer, secrets []*model.Secret) (*tlsv3.CertificateValidationContext, error) {
	in := s.GetTls()
	v := &tlsv3.CertificateValidationContext{
		MatchTypedSubjectAltNames: sanMatchers(in.GetSubjectAltNames()),
		VerifyCertificateHash:     in.GetVerifyCertificateHash(),
		VerifyCertificateSpki:     in.GetVerifyCertificateSpki(),
		Crl:                       t.optionalFile(in.GetCaCrl()),
	}
	for _, secret := range secrets {
		if len(secret.CA) > 0 {
			v.TrustedCa = inlineBytes(secret.CA)
			return v, nil
		}
	}
	if name := in.GetCredentialName(); name != "" {
		if ca := t.gatewaySecret(p, s, name+"-cacert"); ca != nil && len(ca.CA) > 0 {
			v.TrustedCa = inlineBytes(ca.CA)
			return v, nil
		}
	}
	if in.GetCaCertificates() == "" {
		return nil, fmt.Errorf("%s: server %d: tls mode %s needs the CA of clients: caCertificates, or ca.crt in the secret", s.object.Ref, s.index, in.GetMode())
	}
	v.TrustedCa = fileSource(t.file(in.GetCaCertificates()))
	return v, nil
}

// serverTLSParams are those of the server, and MeshConfig.tlsDefaults where it says nothing.
func (t *Translator) serverTLSParams(in *networking.ServerTLSSettings) *tlsv3.TlsParameters {
	out := t.defaultTLSParams()
	if t.mesh.Config.GetTlsDefaults().GetMinProtocolVersion() == meshv1.MeshConfig_TLSConfig_TLSV1_3 {
		out.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TLSv1_3
	}
	if suites := model.CipherSuites(in.GetCipherSuites()); len(suites) > 0 {
		out.CipherSuites = suites
	}
	// The numbers of both enumerations are the same.
	if v := in.GetMaxProtocolVersion(); v != networking.ServerTLSSettings_TLS_AUTO {
		out.TlsMaximumProtocolVersion = tlsv3.TlsParameters_TlsProtocol(v)
		out.TlsMinimumProtocolVersion = min(out.TlsMinimumProtocolVersion, out.TlsMaximumProtocolVersion)
	}
	if v := in.GetMinProtocolVersion(); v != networking.ServerTLSSettings_TLS_AUTO {
		out.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TlsProtocol(v)
	}
	return out
}

// defaultTLSParams are for TLS with who is not of the mesh.
func (t *Translator) defaultTLSParams() *tlsv3.TlsParameters {
	d := t.mesh.Config.GetTlsDefaults()
	return &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
		CipherSuites:              model.CipherSuites(d.GetCipherSuites()),
		EcdhCurves:                model.Curves(d.GetEcdhCurves()),
	}
}
