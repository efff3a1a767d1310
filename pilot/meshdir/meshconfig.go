package meshdir

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// defaultMeshConfig gives what Istio assumes of a mesh whose MeshConfig says
// nothing (pkg/config/mesh of istio/istio).
func defaultMeshConfig() *meshv1.MeshConfig {
	everywhere := []string{"*"}
	return &meshv1.MeshConfig{
		EnableTracing:            true,
		AccessLogEncoding:        meshv1.MeshConfig_TEXT,
		ProtocolDetectionTimeout: durationpb.New(0),
		IngressService:           "istio-ingressgateway",
		IngressControllerMode:    meshv1.MeshConfig_STRICT,
		IngressClass:             "istio",
		TrustDomain:              "cluster.local",
		EnableAutoMtls:           wrapperspb.Bool(true),
		OutboundTrafficPolicy:    &meshv1.MeshConfig_OutboundTrafficPolicy{Mode: meshv1.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY},
		InboundTrafficPolicy:     &meshv1.MeshConfig_InboundTrafficPolicy{Mode: meshv1.MeshConfig_InboundTrafficPolicy_PASSTHROUGH},
		LocalityLbSetting:        &networking.LocalityLoadBalancerSetting{Enabled: wrapperspb.Bool(true)},
		DefaultConfig: &meshv1.ProxyConfig{
			ConfigPath:               "./etc/istio/proxy",
			ClusterName:              &meshv1.ProxyConfig_ServiceCluster{ServiceCluster: "istio-proxy"},
			DrainDuration:            durationpb.New(45 * time.Second),
			TerminationDrainDuration: durationpb.New(5 * time.Second),
			ProxyAdminPort:           15000,
			ControlPlaneAuthPolicy:   meshv1.AuthenticationPolicy_MUTUAL_TLS,
			StatNameLength:           189,
			StatusPort:               15020,
		},
		RootNamespace:                  "istio-system",
		ProxyListenPort:                15001,
		ProxyInboundListenPort:         15006,
		ConnectTimeout:                 durationpb.New(10 * time.Second),
		DefaultServiceExportTo:         everywhere,
		DefaultVirtualServiceExportTo:  everywhere,
		DefaultDestinationRuleExportTo: everywhere,
		DnsRefreshRate:                 durationpb.New(60 * time.Second),
		EnablePrometheusMerge:          wrapperspb.Bool(true),
		DefaultProviders:               &meshv1.MeshConfig_DefaultProviders{},
		ExtensionProviders:             defaultProviders(),
	}
}

func defaultProviders() []*meshv1.MeshConfig_ExtensionProvider {
	return []*meshv1.MeshConfig_ExtensionProvider{
		{Name: "prometheus", Provider: &meshv1.MeshConfig_ExtensionProvider_Prometheus{Prometheus: &meshv1.MeshConfig_ExtensionProvider_PrometheusMetricsProvider{}}},
		{Name: "envoy", Provider: &meshv1.MeshConfig_ExtensionProvider_EnvoyFileAccessLog{
			EnvoyFileAccessLog: &meshv1.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider{Path: "/dev/stdout"},
		}},
	}
}

// parseMeshConfig reads a bare MeshConfig over the defaults, as Istio does: a
// field that is given replaces the default, but defaultConfig is merged field by
// field and extensionProviders keep the defaults of other names.
func parseMeshConfig(r *report) *meshv1.MeshConfig {
	config := defaultMeshConfig()
	proxy := proto.Clone(config.DefaultConfig).(*meshv1.ProxyConfig)
	r.quoted = true // Istio's own examples write port: "9000"
	r.decodeMessage(r.root, config.ProtoReflect(), "")
	if node := get(r.root, "defaultConfig"); node != nil && !isNull(node) {
		again := &report{file: r.file, quoted: true} // its problems are in r already
		again.decodeMessage(node, proxy.ProtoReflect(), "defaultConfig")
	}
	config.DefaultConfig = proxy
	for _, p := range defaultProviders() {
		if !slices.ContainsFunc(config.ExtensionProviders, func(q *meshv1.MeshConfig_ExtensionProvider) bool { return q.Name == p.Name }) {
			config.ExtensionProviders = append(config.ExtensionProviders, p)
		}
	}
	if !r.failed() {
		checkMeshConfig(&checker{report: r}, config)
	}
	return config
}

func checkMeshConfig(c *checker, m *meshv1.MeshConfig) {
	if problem := ownTrustDomainProblem(m.TrustDomain); problem != "" {
		c.errorf("trustDomain", "%s", problem)
	}
	for i, alias := range m.TrustDomainAliases {
		if problem := ownTrustDomainProblem(alias); problem != "" {
			c.errorf(index("trustDomainAliases", i), "%s", problem)
		}
	}
	c.caCertificates(m)
	if !isLabel(m.RootNamespace) {
		c.errorf("rootNamespace", "%q is not a namespace", shorten(m.RootNamespace))
	}
	c.port("proxyListenPort", uint32(max(0, m.ProxyListenPort)))
	c.duration("connectTimeout", m.ConnectTimeout)
	if d := m.ConnectTimeout.AsDuration(); d > time.Hour {
		c.errorf("connectTimeout", "%s is too long: at most 1h", d)
	}
	switch curves := m.MeshMTLS.GetEcdhCurves(); {
	case len(curves) == 0:
	case !slices.Equal(curves, []string{model.PostQuantumGroup}):
		c.errorf("meshMTLS.ecdhCurves", "the mesh prefers %s and takes others: remove it, or give %[1]s alone, which requires it", model.PostQuantumGroup)
	case m.MeshMTLS.GetMinProtocolVersion() == meshv1.MeshConfig_TLSConfig_TLSV1_2:
		c.errorf("meshMTLS.ecdhCurves", "%s is of TLS 1.3 alone: remove minProtocolVersion", model.PostQuantumGroup)
	}
	switch v := m.MeshMTLS.GetMinProtocolVersion(); v {
	case meshv1.MeshConfig_TLSConfig_TLS_AUTO, meshv1.MeshConfig_TLSConfig_TLSV1_2, meshv1.MeshConfig_TLSConfig_TLSV1_3:
	default:
		c.errorf("meshMTLS.minProtocolVersion", "%s is not supported: it is TLSV1_2 or TLSV1_3", v)
	}
	c.locality("localityLbSetting", m.LocalityLbSetting, true)
	c.tlsConfigs(m)
	c.trafficDefaults(m)
	c.unsupported(m.OutboundTrafficPolicy.GetTls() != nil, "outboundTrafficPolicy.tls")
	c.unsupported(m.ServiceEntryVisibility != nil, "serviceEntryVisibility")
	c.zoneAware("zoneAwareLbSetting", m.ZoneAwareLbSetting, true)
	c.proxyConfig("defaultConfig", m.DefaultConfig)
	c.fieldsWithoutEffect(m)
	c.withoutEffect(m.DefaultConfig.GetProxyHeaders().GetPreserveHttp1HeaderCase().GetValue(), "defaultConfig.proxyHeaders.preserveHttp1HeaderCase")
	c.providers(m)
}

func (c *checker) tlsConfigs(m *meshv1.MeshConfig) {
	c.cipherSuites("meshMTLS.cipherSuites", m.MeshMTLS.GetCipherSuites())
	if len(m.MeshMTLS.GetCipherSuites()) > 0 && m.MeshMTLS.GetMinProtocolVersion() != meshv1.MeshConfig_TLSConfig_TLSV1_2 {
		c.warnf("meshMTLS.cipherSuites", "the mesh speaks TLS 1.3, which has cipher suites of its own: these count with minProtocolVersion TLSV1_2 only")
	}
	c.cipherSuites("tlsDefaults.cipherSuites", m.TlsDefaults.GetCipherSuites())
	curves := m.TlsDefaults.GetEcdhCurves()
	for i, curve := range curves {
		switch {
		case slices.Contains(curves[:i], curve):
			c.warnf(index("tlsDefaults.ecdhCurves", i), "%q is given twice", curve)
		case len(model.Curves([]string{curve})) == 0:
			c.warnf(index("tlsDefaults.ecdhCurves", i), "no Envoy knows %q: it is left out", shorten(curve))
		}
	}
}

// trafficDefaults are checked like the same fields of a DestinationRule or VirtualService.
func (c *checker) trafficDefaults(m *meshv1.MeshConfig) {
	if d := m.ProtocolDetectionTimeout; d.AsDuration() != 0 {
		c.duration("protocolDetectionTimeout", d)
	}
	c.duration("dnsRefreshRate", m.DnsRefreshRate)
	c.duration("tcpKeepalive.time", m.TcpKeepalive.GetTime())
	c.duration("tcpKeepalive.interval", m.TcpKeepalive.GetInterval())
	c.retries("defaultHttpRetryPolicy", m.DefaultHttpRetryPolicy)
	c.connectionPool("defaultTrafficPolicy.connectionPool", m.DefaultTrafficPolicy.GetConnectionPool())
	c.outlierDetection("defaultTrafficPolicy.outlierDetection", m.DefaultTrafficPolicy.GetOutlierDetection())
	for i, s := range m.ServiceSettings {
		for j, h := range s.GetHosts() {
			if problem := hostProblem(h, true); problem != "" {
				c.errorf(index(index("serviceSettings", i)+".hosts", j), "%s", problem)
			}
		}
	}
}

// ownTrustDomainProblem: Istio wants DNS labels too.
func ownTrustDomainProblem(td string) string {
	if problem := trustDomainProblem(td); problem != "" {
		return problem
	}
	if slices.ContainsFunc(strings.Split(strings.TrimSuffix(td, "."), "."), func(part string) bool { return !isAnyLabel(part) }) {
		return "\"" + shorten(td) + "\" is not a trust domain that Istio knows: each of its parts begins and ends with a letter or digit, and has no underscore"
	}
	return ""
}

// trustDomainProblem: SPIFFE's rules, section 2.1 of SPIFFE-ID.
func trustDomainProblem(td string) string {
	if _, err := spiffeid.TrustDomainFromString(td); err != nil || strings.Contains(td, "/") {
		return "\"" + shorten(td) + "\" is not a trust domain: use lower-case letters, digits, '-' and '.', such as example.org"
	}
	return ""
}

func (c *checker) providers(m *meshv1.MeshConfig) {
	seen := map[string]bool{}
	for i, p := range m.ExtensionProviders {
		at := index("extensionProviders", i)
		switch {
		case p.Name == "":
			c.errorf(at+".name", "a name is missing")
		case seen[p.Name]:
			c.errorf(at+".name", "the provider %q is given twice", p.Name)
		case p.Provider == nil:
			c.errorf(at, "says nothing about the provider: give for example envoyExtAuthzGrpc")
		}
		seen[p.Name] = true
		if grpc := p.GetEnvoyExtAuthzGrpc(); grpc != nil {
			c.authorizer(at+".envoyExtAuthzGrpc", grpc.Service, grpc.Port, grpc.StatusOnError)
			c.bodyInCheck(at+".envoyExtAuthzGrpc", grpc.IncludeRequestBodyInCheck)
			c.duration(at+".envoyExtAuthzGrpc.timeout", grpc.Timeout)
		}
		if http := p.GetEnvoyExtAuthzHttp(); http != nil {
			c.authorizer(at+".envoyExtAuthzHttp", http.Service, http.Port, http.StatusOnError)
			c.duration(at+".envoyExtAuthzHttp.timeout", http.Timeout)
			c.bodyInCheck(at+".envoyExtAuthzHttp", http.IncludeRequestBodyInCheck)
			c.headerLists(at+".envoyExtAuthzHttp", http)
			if p := http.PathPrefix; p != "" && !strings.HasPrefix(p, "/") {
				c.errorf(at+".envoyExtAuthzHttp.pathPrefix", "%q does not begin with /", shorten(p))
			}
		}
	}
}

// bodyInCheck: an Envoy refuses its whole configuration for a buffer of nothing.
func (c *checker) bodyInCheck(at string, body *meshv1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody) {
	if body != nil && body.MaxRequestBytes == 0 {
		c.errorf(at+".includeRequestBodyInCheck.maxRequestBytes", "is missing: write how many bytes of a body the provider gets")
	}
}

// headerLists: as in Istio a "*" alone makes a provider unusable, and then all that
// the rules match is refused.
func (c *checker) headerLists(at string, p *meshv1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) {
	for name, list := range map[string][]string{
		"includeRequestHeadersInCheck": p.IncludeRequestHeadersInCheck, "includeHeadersInCheck": p.IncludeHeadersInCheck, //nolint:staticcheck // still read where the newer field is empty
		"headersToUpstreamOnAllow": p.HeadersToUpstreamOnAllow, "headersToDownstreamOnAllow": p.HeadersToDownstreamOnAllow,
		"headersToDownstreamOnDeny": p.HeadersToDownstreamOnDeny,
	} {
		for i, header := range list {
			if header == "*" {
				c.warnf(index(at+"."+name, i), "\"*\" alone makes the provider unusable, so all that the rules match is refused: give names, prefixes (\"x-*\") or suffixes")
			}
		}
	}
}

func (c *checker) authorizer(at, service string, port uint32, statusOnError string) {
	host := service
	if ns, rest, ok := strings.Cut(service, "/"); ok {
		host = rest
		if !isLabel(ns) {
			c.errorf(at+".service", "%q is not [namespace/]host", shorten(service))
		}
	}
	if problem := hostProblem(host, false); problem != "" && !isIP(host) {
		c.errorf(at+".service", "%s", problem)
	}
	c.port(at+".port", port)
	if status, err := strconv.Atoi(statusOnError); statusOnError != "" && (err != nil || status < 100 || status > 599) {
		c.errorf(at+".statusOnError", "%q is not an HTTP status", shorten(statusOnError))
	}
}

type meshProvider = meshv1.MeshConfig_ExtensionProvider
