package meshdir

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// checkGateway follows the rules of Istio's validation of the kind.
func checkGateway(c *checker) {
	gw := c.object.spec.(*networking.Gateway)
	if !isLabel(c.object.meta.Name) {
		c.errorf("metadata.name", "%q is not valid for a Gateway: use lower-case letters, digits and '-', at most 63", c.object.meta.Name)
	}
	if len(gw.Servers) == 0 {
		c.errorf("spec.servers", "a Gateway needs at least one server")
	}
	c.labels("spec.selector", gw.Selector)
	names := map[string]bool{}
	for i, s := range gw.Servers {
		at := index("spec.servers", i)
		c.server(at, s)
		if name := s.Port.GetName(); name != "" {
			if names[name] {
				c.errorf(at+".port.name", "the port name %q is given twice: port names of a Gateway are unique", name)
			}
			names[name] = true
		}
	}
}

func (c *checker) server(at string, s *networking.Server) {
	if len(s.Hosts) == 0 {
		c.errorf(at+".hosts", "a server needs at least one host; \"*\" is all")
	}
	for i, h := range s.Hosts {
		c.gatewayHost(index(at+".hosts", i), h)
	}
	if s.Port == nil {
		c.errorf(at+".port", "a port is missing")
		return
	}
	protocol, known := c.gatewayPort(at, s)
	c.serverTLS(at+".tls", s.Tls)
	c.withoutEffect(s.DefaultEndpoint != "", at+".defaultEndpoint")
	if !known {
		return
	}
	encrypted := protocol == model.HTTPS || protocol == model.TLS
	switch {
	case encrypted && s.Tls == nil:
		c.errorf(at+".tls", "a server of protocol %s needs tls settings", s.Port.Protocol)
	case encrypted || s.Tls == nil:
	case !protocol.IsHTTP():
		c.errorf(at+".tls", "a server of protocol %s cannot have tls settings: use TLS or HTTPS", s.Port.Protocol)
	case !passesThrough(s.Tls) || s.Tls.CaCertificates+s.Tls.PrivateKey+s.Tls.ServerCertificate != "":
		c.errorf(at+".tls", "a server of protocol %s can have only httpsRedirect here: use HTTPS", s.Port.Protocol)
	}
	if s.Tls.GetHttpsRedirect() && !protocol.IsHTTP() {
		c.warnf(at+".tls.httpsRedirect", "has no effect on a server of protocol %s", s.Port.Protocol)
	}
}

func (c *checker) gatewayPort(at string, s *networking.Server) (model.Protocol, bool) {
	if s.Port.Name == "" {
		c.errorf(at+".port.name", "the port needs a name")
	}
	c.withoutEffect(s.Bind != "", at+".bind")
	unix, isUnix := strings.CutPrefix(s.Bind, unixPrefix)
	switch {
	case isUnix:
		c.unixPath(at+".bind", unix)
		if s.Port.Number != 0 {
			c.errorf(at+".port.number", "must be 0 for a unix socket")
		}
	case s.Bind != "" && !isIP(s.Bind):
		c.errorf(at+".bind", "%q is not an IP address", shorten(s.Bind))
		fallthrough
	default:
		c.port(at+".port.number", s.Port.Number)
	}
	if s.Port.TargetPort != 0 { //nolint:staticcheck // deprecated by Istio, refused there too
		c.errorf(at+".port.targetPort", "has no effect on a Gateway: remove it")
	}
	protocol, known := protocolOf(s.Port.Protocol)
	if !known {
		c.errorf(at+".port.protocol", "unknown protocol %q: it is one of %s", shorten(s.Port.Protocol), protocolNames)
	}
	return protocol, known
}

// gatewayHost: [namespace/]host, where namespace may be * or .
func (c *checker) gatewayHost(at, host string) {
	if ns, rest, ok := strings.Cut(host, "/"); ok {
		if ns != "*" && ns != "." && !isLabel(ns) {
			c.errorf(at, "%q is not a namespace, \".\" or \"*\"", shorten(ns))
		}
		host = rest
	}
	c.fullHost(at, host)
}

// fullHost refuses short names and wildcards such as *foo.com.
func (c *checker) fullHost(at, host string) {
	switch {
	case host == "*" || isIP(host):
	case !strings.Contains(host, "."):
		c.errorf(at, "%q is a short name: write the whole host name", shorten(host))
	case strings.HasPrefix(host, "*") && !strings.HasPrefix(host, "*."):
		c.errorf(at, "%q is a wildcard within a name: write *. before a domain", shorten(host))
	default:
		c.host(at, host)
	}
}

func (c *checker) serverTLS(at string, t *networking.ServerTLSSettings) {
	if t == nil {
		return
	}
	credentials := t.CredentialName != "" || len(t.CredentialNames) > 0
	files := t.ServerCertificate != "" || t.PrivateKey != "" || t.CaCertificates != "" || len(t.TlsCertificates) > 0
	switch t.Mode {
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		if credentials || files {
			c.errorf(at, "mode ISTIO_MUTUAL takes the certificates of the mesh: remove the other certificates")
		}
	case networking.ServerTLSSettings_PASSTHROUGH, networking.ServerTLSSettings_AUTO_PASSTHROUGH:
		if t.Mode == networking.ServerTLSSettings_AUTO_PASSTHROUGH {
			c.warnf(at+".mode", "AUTO_PASSTHROUGH is for several clusters, which this version does not have: without tls routes of a VirtualService the server stays closed")
		}
		c.oneCertificateSource(at, t)
		if credentials || files || t.CaCrl != "" {
			c.warnf(at, "mode %s takes no certificates: they are ignored", t.Mode)
		}
	default:
		c.terminatingTLS(at, t, credentials)
		c.clientsNotAsked(at, t)
	}
	old := []networking.ServerTLSSettings_TLSProtocol{networking.ServerTLSSettings_TLSV1_0, networking.ServerTLSSettings_TLSV1_1}
	if slices.Contains(old, t.MinProtocolVersion) && len(t.CipherSuites) == 0 {
		c.warnf(at+".minProtocolVersion", "of the cipher suites of %s none is offered by default: name them in cipherSuites", t.MinProtocolVersion)
	}
	c.withoutEffect(t.InsecureSkipVerify != nil, at+".insecureSkipVerify")
	if t.MinProtocolVersion != 0 && t.MaxProtocolVersion != 0 && t.MinProtocolVersion > t.MaxProtocolVersion {
		c.errorf(at+".minProtocolVersion", "is above maxProtocolVersion")
	}
	c.cipherSuites(at+".cipherSuites", t.CipherSuites)
}

// cipherSuites warns of what is left out when Envoys are told: they would refuse it.
func (c *checker) cipherSuites(at string, suites []string) {
	for i, suite := range suites {
		switch {
		case slices.Contains(suites[:i], suite):
			c.warnf(index(at, i), "%q is given twice", suite)
		case len(model.CipherSuites([]string{suite})) == 0:
			c.warnf(index(at, i), "no Envoy knows %q: it is left out", shorten(suite))
		}
	}
}

// passesThrough says that TLS is not ended here; a server of plain HTTP has no other
// mode, for its httpsRedirect.
func passesThrough(t *networking.ServerTLSSettings) bool {
	return t.Mode == networking.ServerTLSSettings_PASSTHROUGH || t.Mode == networking.ServerTLSSettings_AUTO_PASSTHROUGH
}

// clientsNotAsked warns of what is about certificates of clients where none is asked for.
func (c *checker) clientsNotAsked(at string, t *networking.ServerTLSSettings) {
	if t.Mode != networking.ServerTLSSettings_SIMPLE {
		return
	}
	for field, given := range map[string]bool{
		"caCertificates": t.CaCertificates != "", "caCertCredentialName": t.CaCertCredentialName != "", "subjectAltNames": len(t.SubjectAltNames) > 0,
		"verifyCertificateSpki": len(t.VerifyCertificateSpki) > 0, "verifyCertificateHash": len(t.VerifyCertificateHash) > 0,
		"caCrl": t.CaCrl != "" && (t.CredentialName != "" || len(t.CredentialNames) > 0),
	} {
		if given {
			c.warnf(at+"."+field, "mode SIMPLE asks clients for no certificate, so everybody is let in and this is ignored: write MUTUAL")
		}
	}
}

// oneCertificateSource: of several only one could be shown.
func (c *checker) oneCertificateSource(at string, t *networking.ServerTLSSettings) {
	sources := 0
	for _, given := range []bool{t.ServerCertificate != "" && t.PrivateKey != "", t.CredentialName != "", len(t.CredentialNames) > 0, len(t.TlsCertificates) > 0} {
		if given {
			sources++
		}
	}
	if sources > 1 {
		c.errorf(at, "only one of credentialName, credentialNames, tlsCertificates and serverCertificate with privateKey can be given")
	}
}

func (c *checker) terminatingTLS(at string, t *networking.ServerTLSSettings, credentials bool) {
	c.oneCertificateSource(at, t)
	if credentials {
		return
	}
	if t.CaCrl != "" && t.Mode == networking.ServerTLSSettings_SIMPLE {
		c.errorf(at+".caCrl", "cannot go with mode SIMPLE, which asks clients for no certificate")
	}
	if t.Mode != networking.ServerTLSSettings_SIMPLE && t.CaCertificates == "" {
		c.errorf(at+".caCertificates", "mode %s needs the certificates of the clients' authority", t.Mode)
	}
	if len(t.TlsCertificates) == 0 {
		c.keyPair(at, t.ServerCertificate, t.PrivateKey)
	}
	for i, pair := range t.TlsCertificates {
		c.keyPair(index(at+".tlsCertificates", i), pair.ServerCertificate, pair.PrivateKey)
	}
}

func (c *checker) keyPair(at, cert, key string) {
	if cert == "" {
		c.errorf(at+".serverCertificate", "a server certificate is missing: give serverCertificate and privateKey, or credentialName")
	}
	if key == "" {
		c.errorf(at+".privateKey", "a private key is missing: give serverCertificate and privateKey, or credentialName")
	}
}
