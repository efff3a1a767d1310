package translate

import (
	"fmt"
	"strings"

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
	name = strings.TrimPrefix(name, "kubernetes://")
	if namespace, rest, ok := strings.Cut(name, "/"); ok {
		if namespace != s.object.Namespace && namespace != p.Namespace {
			return nil // nobody uses the key of another namespace by naming it
		}
		return t.secret(namespace, rest)
	}
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
	authorities, err := t.clientAuthorities(p, s, secrets)
	if err != nil {
		return nil, err
	}
	for _, secret := range authorities {
		if len(secret.CA) > 0 {
			v.TrustedCa = inlineBytes(secret.CA)
			if len(secret.CRL) > 0 {
				v.Crl = inlineBytes(secret.CRL)
			}
			return v, nil
		}
	}
	if in.GetCaCertificates() == "" {
		return nil, fmt.Errorf("%s: server %d: tls mode %s needs the CA of clients: caCertificates, or ca.crt in the secret", s.object.Ref, s.index, in.GetMode())
	}
	v.TrustedCa = fileSource(t.file(in.GetCaCertificates()))
	return v, nil
}

// clientAuthorities are the secrets that may have the CA of clients, that which counts
// first: what caCertCredentialName says, a secret beside the server's own, and that itself.
func (t *Translator) clientAuthorities(p *model.Proxy, s *gatewayServer, secrets []*model.Secret) ([]*model.Secret, error) {
	in := s.GetTls()
	if name := in.GetCaCertCredentialName(); name != "" {
		secret := t.gatewaySecret(p, s, name)
		if secret == nil || len(secret.CA) == 0 {
			return nil, fmt.Errorf("%s: server %d: no CA of clients in secret %s", s.object.Ref, s.index, name)
		}
		return []*model.Secret{secret}, nil
	}
	var out []*model.Secret
	for _, name := range append(in.GetCredentialNames(), in.GetCredentialName()) {
		if beside := t.gatewaySecret(p, s, name+caSuffix); name != "" && beside != nil {
			out = append(out, beside)
		}
	}
	return append(out, secrets...), nil
}

// caSuffix ends the name of a secret that has only the CA, beside another one.
const caSuffix = "-cacert"

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
