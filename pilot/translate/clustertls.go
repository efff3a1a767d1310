package translate

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// systemRoots is the trust bundle of Debian, Alpine and most others, for servers
// outside of the mesh whose rule names none.
const systemRoots = "/etc/ssl/certs/ca-certificates.crt"

// tls chooses the transport: what the DestinationRule says, else mesh mTLS to
// those endpoints that take it.
func (b *clusterBuilder) tls() error {
	settings := b.policy.GetTls()
	if settings == nil {
		b.autoTLS()
		return nil
	}
	switch settings.GetMode() {
	case networking.ClientTLSSettings_DISABLE:
		return nil
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		sans := settings.GetSubjectAltNames()
		if len(sans) == 0 {
			sans = b.peers.identities
		}
		b.out.TransportSocket = b.meshTLS(sans, settings.GetSni())
		return nil
	}
	ctx, err := b.originate(settings)
	if err != nil {
		return err
	}
	b.out.TransportSocket = envoy.TransportSocket(ctx)
	return nil
}

// proxyProtocol has every connection begin with the address that the client came from.
func (b *clusterBuilder) proxyProtocol() {
	in := b.policy.GetProxyProtocol()
	if in == nil {
		return
	}
	within := func(inner *corev3.TransportSocket) *corev3.TransportSocket {
		if inner == nil {
			inner = rawBuffer()
		}
		return &corev3.TransportSocket{
			Name: "envoy.transport_sockets.upstream_proxy_protocol",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: envoy.Any(&proxyprotocolv3.ProxyProtocolUpstreamTransport{
				// The numbers of both enumerations are the same.
				Config: &corev3.ProxyProtocolConfig{Version: corev3.ProxyProtocolConfig_Version(in.GetVersion())}, TransportSocket: inner,
			})},
		}
	}
	b.out.TransportSocket = within(b.out.GetTransportSocket())
	for _, m := range b.out.GetTransportSocketMatches() {
		m.TransportSocket = within(m.GetTransportSocket())
	}
}

func rawBuffer() *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.raw_buffer",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: envoy.Any(&rawbufferv3.RawBuffer{})},
	}
}

// autoTLS is mesh mTLS for the endpoints that take it. With endpoints of both
// kinds each endpoint's metadata chooses.
func (b *clusterBuilder) autoTLS() {
	if b.peers.mesh == 0 {
		return
	}
	mesh := b.meshTLS(b.peers.identities, "")
	if b.peers.plain == 0 {
		b.out.TransportSocket = mesh
		return
	}
	b.out.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{
		{
			Name:            "mesh",
			Match:           &structpb.Struct{Fields: map[string]*structpb.Value{tlsModeKey: structpb.NewStringValue(tlsModeMesh)}},
			TransportSocket: mesh,
		},
		{
			Name:            "plain",
			Match:           &structpb.Struct{},
			TransportSocket: rawBuffer(),
		},
	}
}

// meshTLS offers our ALPN and the HTTP version that the cluster will speak; the
// server takes the version from it.
func (b *clusterBuilder) meshTLS(sans []string, sni string) *corev3.TransportSocket {
	alpn := []string{envoy.ALPN}
	switch b.httpProtocol() {
	case http2, http2Mesh:
		alpn = append(alpn, "h2")
	case http1:
		alpn = append(alpn, "http/1.1")
	case sameAsClient:
		// With no list of its own Envoy offers the protocol of each connection.
		alpn = nil
	}
	mesh := b.t.mesh
	if b.live() {
		all := *mesh
		all.Revoked = model.Revoked{}
		mesh = &all
	}
	ctx := envoy.UpstreamTLS(mesh, sans, alpn)
	b.out.Metadata = envoy.RevokedMark(mesh.Revoked.NewestOf(sans))
	ctx.Sni = sni
	if sni == "" {
		ctx.Sni = serverNameOf(b.key.port, b.key.subset, b.key.svc.Hostname)
	}
	return envoy.TransportSocket(ctx)
}

// originate is TLS to a server that is not of the mesh.
func (b *clusterBuilder) originate(in *networking.ClientTLSSettings) (*tlsv3.UpstreamTlsContext, error) {
	common := &tlsv3.CommonTlsContext{TlsParams: b.t.defaultTLSParams()}
	common.TlsParams.TlsMaximumProtocolVersion = tlsv3.TlsParameters_TLSv1_3
	ctx := &tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: in.GetSni()}
	sans := in.GetSubjectAltNames()
	if len(sans) == 0 && b.key.svc.Kind == "ServiceEntry" {
		sans = b.key.svc.SubjectAltNames
	}
	insecure := in.GetInsecureSkipVerify().GetValue()
	ca, secret := b.roots(in)
	if name := in.GetCredentialName(); name != "" && secret == nil && b.serverAuthority(name) == nil && !b.t.secretSomewhere(name) {
		return nil, fmt.Errorf("%s: no secret %s", b.ruleName(), name)
	}
	if in.GetMode() == networking.ClientTLSSettings_MUTUAL && (in.GetCredentialName() == "" || secret != nil) {
		cert, err := b.clientCertificate(in, secret)
		if err != nil {
			return nil, err
		}
		common.TlsCertificates = []*tlsv3.TlsCertificate{cert}
	}
	if !insecure {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: ca, MatchTypedSubjectAltNames: sanMatchers(sans), Crl: b.revocations(in),
		}}
	}
	b.serverNames(ctx, sans, insecure)
	if p := b.httpProtocol(); p == http2 || p == http2Mesh {
		common.AlpnProtocols = []string{"h2"}
	}
	return ctx, nil
}

// serverNames sends the request's host as SNI where the rule gives none, and
// checks it where the rule gives no subject alternative names.
func (b *clusterBuilder) serverNames(ctx *tlsv3.UpstreamTlsContext, sans []string, insecure bool) {
	if ctx.Sni != "" {
		return
	}
	if !b.port.Protocol.IsHTTP() && !b.dynamic() {
		// No request whose host could be taken: the service's own name.
		ctx.Sni = b.key.svc.Hostname
		if len(sans) == 0 && !insecure {
			v := ctx.GetCommonTlsContext().GetValidationContext()
			v.MatchTypedSubjectAltNames = sanMatchers([]string{b.key.svc.Hostname})
		}
		return
	}
	b.options.UpstreamHttpProtocolOptions = &corev3.UpstreamHttpProtocolOptions{AutoSni: true, AutoSanValidation: len(sans) == 0 && !insecure}
}

// roots are the CAs that vouch for the server: a file of the rule, those of the
// named secret, or the system's.
func (b *clusterBuilder) roots(in *networking.ClientTLSSettings) (*corev3.DataSource, *model.Secret) {
	if name := in.GetCredentialName(); name != "" {
		secret := b.credential(name)
		if from := b.serverAuthority(name); from != nil {
			return inlineBytes(from.CA), secret
		}
		return fileSource(systemRoots), secret
	}
	if file := in.GetCaCertificates(); file != "" && file != model.SystemAuthorities {
		return fileSource(b.t.file(file)), nil
	}
	return fileSource(systemRoots), nil
}

// serverAuthority is the secret that has the CA of servers for the secret of a rule: one
// beside it, else itself; nil if neither has.
func (b *clusterBuilder) serverAuthority(name string) *model.Secret {
	for _, n := range []string{name + caSuffix, name} {
		if s := b.credential(n); s != nil && len(s.CA) > 0 {
			return s
		}
	}
	return nil
}

// credential finds a secret that the rule names: of the namespace that the gateway runs
// in, as in Istio, else of the rule's. Nil if there is none: where only another namespace
// has it, as for sidecars in Istio, the system's authorities vouch for the server, and
// there is no certificate to show.
func (b *clusterBuilder) credential(name string) *model.Secret {
	for _, ns := range []string{b.key.credentials, b.ruleNamespace()} {
		if s := b.t.secret(ns, name); s != nil {
			return s
		}
	}
	return nil
}

// revocations is the list of what the CA of servers has revoked, nil for none.
func (b *clusterBuilder) revocations(in *networking.ClientTLSSettings) *corev3.DataSource {
	if name := in.GetCredentialName(); name != "" {
		if from := b.serverAuthority(name); from != nil && len(from.CRL) > 0 {
			return inlineBytes(from.CRL)
		}
		return nil
	}
	return b.t.optionalFile(in.GetCaCrl())
}

func (b *clusterBuilder) clientCertificate(in *networking.ClientTLSSettings, secret *model.Secret) (*tlsv3.TlsCertificate, error) {
	if secret != nil {
		return &tlsv3.TlsCertificate{CertificateChain: inlineBytes(secret.Cert), PrivateKey: inlineBytes(secret.Key)}, nil
	}
	if in.GetClientCertificate() == "" || in.GetPrivateKey() == "" {
		return nil, fmt.Errorf("%s: tls mode MUTUAL needs clientCertificate and privateKey", b.ruleName())
	}
	return &tlsv3.TlsCertificate{
		CertificateChain: fileSource(b.t.file(in.GetClientCertificate())),
		PrivateKey:       fileSource(b.t.file(in.GetPrivateKey())),
	}, nil
}

func (b *clusterBuilder) ruleNamespace() string {
	if b.key.rule == nil {
		return b.key.svc.Namespace
	}
	return b.key.rule.namespace
}

func (b *clusterBuilder) ruleName() string {
	if b.key.rule == nil {
		return b.key.svc.String()
	}
	return b.key.rule.sources[0].String()
}

// secret finds a TLS secret, nil if there is none.
func (t *Translator) secret(namespace, name string) *model.Secret {
	return t.mesh.Secrets[namespace+"/"+name]
}

// secretSomewhere says that a namespace has a secret of this name.
func (t *Translator) secretSomewhere(name string) bool {
	for key := range t.mesh.Secrets {
		if _, n, _ := strings.Cut(key, "/"); n == name {
			return true
		}
	}
	return false
}

// file completes a path that an object names: relative ones are in the mesh
// directory.
func (t *Translator) file(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(t.mesh.Dir, path)
}

func (t *Translator) optionalFile(path string) *corev3.DataSource {
	if path == "" {
		return nil
	}
	return fileSource(t.file(path))
}

func fileSource(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

func inlineBytes(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// sanMatchers match names exactly; a name may be a DNS name, a URI or an address.
func sanMatchers(names []string) []*tlsv3.SubjectAltNameMatcher {
	var out []*tlsv3.SubjectAltNameMatcher
	for _, n := range names {
		for _, kind := range []tlsv3.SubjectAltNameMatcher_SanType{tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI, tlsv3.SubjectAltNameMatcher_IP_ADDRESS} {
			out = append(out, &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Exact{Exact: n},
			}})
		}
	}
	return out
}

func packOptions(o *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{envoy.HTTPOptionsKey: envoy.Any(o)}
}

func sortedCopy(in []string) []string {
	out := slices.Clone(in)
	slices.Sort(out)
	return out
}
