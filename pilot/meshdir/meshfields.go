package meshdir

import (
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1 "istio.io/api/mesh/v1alpha1"
)

// meshFields are the fields of MeshConfig that something here goes by, or that are
// refused. Of the others it is told that they have no effect.
var meshFields = []string{
	"accessLogEncoding", "accessLogFile", "accessLogFormat", "caCertificates", "connectTimeout", "defaultConfig", "defaultDestinationRuleExportTo",
	"defaultHttpRetryPolicy", "defaultServiceExportTo", "defaultTrafficPolicy", "defaultVirtualServiceExportTo", "dnsRefreshRate", "enableAutoMtls",
	"extensionProviders", "h2UpgradePolicy", "localityLbSetting", "meshMTLS", "outboundTrafficPolicy", "pathNormalization", "rootNamespace",
	"serviceEntryVisibility", "tcpKeepalive", "tlsDefaults", "trustDomain", "trustDomainAliases",
}

// proxyFields are those of defaultConfig.
var proxyFields = []string{"gatewayTopology", "proxyHeaders"}

// providerFields are those of extensionProviders.
var providerFields = []string{"name", "envoyExtAuthzGrpc", "envoyExtAuthzHttp"}

// fieldsWithoutEffect warns of what is written and that nothing goes by.
func (c *checker) fieldsWithoutEffect(m *meshv1.MeshConfig) {
	c.unused("", m.ProtoReflect().Descriptor(), meshFields)
	c.unused("defaultConfig", m.GetDefaultConfig().ProtoReflect().Descriptor(), proxyFields)
	for i, p := range m.GetExtensionProviders() {
		c.unused(index("extensionProviders", i), p.ProtoReflect().Descriptor(), providerFields)
	}
}

func (c *checker) unused(at string, of protoreflect.MessageDescriptor, used []string) {
	n := c.node(at)
	if n == nil {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if fd := fieldByName(of.Fields(), n.Content[i].Value); fd != nil && !isNull(n.Content[i+1]) {
			c.withoutEffect(!slices.Contains(used, fd.JSONName()), join(at, fd.JSONName()))
		}
	}
}

// proxyConfig follows Istio's rules, also for what has no effect: who takes the file to
// Istio has it refused there.
func (c *checker) proxyConfig(at string, p *meshv1.ProxyConfig) {
	tracing := p.GetTracing()
	for field, address := range map[string]string{
		"discoveryAddress": p.GetDiscoveryAddress(), "statsdUdpAddress": p.GetStatsdUdpAddress(),
		"envoyMetricsServiceAddress":    p.GetEnvoyMetricsServiceAddress(), //nolint:staticcheck // deprecated by Istio, still accepted
		"envoyMetricsService.address":   p.GetEnvoyMetricsService().GetAddress(),
		"envoyAccessLogService.address": p.GetEnvoyAccessLogService().GetAddress(),
		"tracing.zipkin.address":        tracing.GetZipkin().GetAddress(),
		"tracing.datadog.address":       tracing.GetDatadog().GetAddress(),
		"tracing.lightstep.address":     tracing.GetLightstep().GetAddress(),
	} {
		if address = strings.Replace(address, "$(HOST_IP)", "127.0.0.1", 1); address != "" {
			c.hostPort(at+"."+field, address)
		}
	}
	if l := tracing.GetLightstep(); l != nil && (l.GetAddress() == "" || l.GetAccessToken() == "") {
		c.errorf(at+".tracing.lightstep", "needs address and accessToken")
	}
	for field, missing := range map[string]bool{
		"zipkin": tracing.GetZipkin() != nil && tracing.GetZipkin().GetAddress() == "", "datadog": tracing.GetDatadog() != nil && tracing.GetDatadog().GetAddress() == "",
	} {
		if missing {
			c.errorf(at+".tracing."+field+".address", "is missing: write HOST:PORT")
		}
	}
	c.clientTLS(at+".tracing.tlsSettings", tracing.GetTlsSettings())
	c.duration(at+".drainDuration", p.GetDrainDuration())
	if p.GetDrainDuration().AsDuration()%time.Second != 0 {
		c.errorf(at+".drainDuration", "must be whole seconds")
	}
	c.port(at+".proxyAdminPort", uint32(max(0, p.GetProxyAdminPort())))
	c.port(at+".statusPort", uint32(max(0, p.GetStatusPort())))
	c.notNegative(at+".concurrency", p.GetConcurrency().GetValue())
	c.keyProvider(at+".privateKeyProvider", p.GetPrivateKeyProvider())
	c.connectionSettings(at+".connectionSettings", p.GetConnectionSettings())
}

// hostPort checks NAME:PORT.
func (c *checker) hostPort(at, address string) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || !validPort(port) || !isIP(host) && hostProblem(host, false) != "" {
		c.errorf(at, "%q is not HOST:PORT", shorten(address))
	}
}

func (c *checker) keyProvider(at string, p *meshv1.PrivateKeyProvider) {
	if p == nil {
		return
	}
	delay := p.GetCryptomb().GetPollDelay()
	if p.GetQat() != nil {
		delay = p.GetQat().GetPollDelay()
	}
	switch {
	case p.Provider == nil:
		c.errorf(at, "says nothing about the provider: give cryptomb or qat")
	case delay.AsDuration() == 0:
		c.errorf(at, "needs a pollDelay above 0")
	}
}

func (c *checker) connectionSettings(at string, s *meshv1.ProxyConfig_ConnectionSettings) {
	if s == nil {
		return
	}
	for field, d := range map[string]*durationpb.Duration{
		"httpIdleTimeout": s.HttpIdleTimeout, "httpMaxConnectionDuration": s.HttpMaxConnectionDuration, "httpDrainTimeout": s.HttpDrainTimeout,
		"httpRequestTimeout": s.HttpRequestTimeout, "httpRequestHeadersTimeout": s.HttpRequestHeadersTimeout,
		"httpStreamIdleTimeout": s.HttpStreamIdleTimeout, "httpMaxStreamDuration": s.HttpMaxStreamDuration,
	} {
		if d.AsDuration() < 0 {
			c.errorf(at+"."+field, "%s is negative", d.AsDuration())
		}
	}
	const window = 65535 // of HTTP/2, RFC 9113, section 6.9.2
	for field, v := range map[string]struct {
		value *wrapperspb.Int32Value
		least int32
	}{
		"listenerPerConnectionBufferLimitBytes": {s.ListenerPerConnectionBufferLimitBytes, 0}, "clusterPerConnectionBufferLimitBytes": {s.ClusterPerConnectionBufferLimitBytes, 0},
		"httpMaxConcurrentStreams": {s.HttpMaxConcurrentStreams, 1}, "listenerConnectionLimit": {s.ListenerConnectionLimit, 1},
		"globalDownstreamConnectionLimit": {s.GlobalDownstreamConnectionLimit, 1}, "http2InitialStreamWindowSize": {s.Http2InitialStreamWindowSize, window},
		"http2InitialConnectionWindowSize": {s.Http2InitialConnectionWindowSize, window},
	} {
		if v.value != nil && v.value.Value < v.least {
			c.errorf(at+"."+field, "%d is too little: at least %d", v.value.Value, v.least)
		}
	}
}
