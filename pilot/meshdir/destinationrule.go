package meshdir

import (
	"math/big"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// checkDestinationRule follows the rules of Istio's validation of the kind.
func checkDestinationRule(c *checker) {
	rule := c.object.spec.(*networking.DestinationRule)
	c.host("spec.host", rule.Host)
	c.trafficPolicy("spec.trafficPolicy", rule.TrafficPolicy)
	seen := map[string]bool{}
	for i, s := range rule.Subsets {
		at := index("spec.subsets", i)
		switch {
		case !isAnyLabel(s.Name):
			c.errorf(at+".name", "%q is not the name of a subset: use letters, digits and '-'", shorten(s.Name))
		case seen[s.Name]:
			c.errorf(at+".name", "subset %q is given twice: remove one", s.Name)
		}
		seen[s.Name] = true
		c.labels(at+".labels", s.Labels)
		c.trafficPolicy(at+".trafficPolicy", s.TrafficPolicy)
	}
	c.workloadSelector("spec.workloadSelector", "matchLabels", rule.WorkloadSelector != nil, rule.WorkloadSelector.GetMatchLabels())
	c.exportTo(rule.ExportTo, rule.WorkloadSelector != nil, false)
}

func (c *checker) trafficPolicy(at string, p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	if p.LoadBalancer == nil && p.ConnectionPool == nil && p.OutlierDetection == nil && p.Tls == nil && p.PortLevelSettings == nil &&
		p.Tunnel == nil && p.ProxyProtocol == nil && p.RetryBudget == nil {
		c.errorf(at, "the policy is empty: give at least one field, or remove it")
	}
	if p.Tunnel != nil && p.ProxyProtocol != nil {
		c.errorf(at, "only one of tunnel and proxyProtocol can be given")
	}
	c.unsupported(p.Tunnel.GetProtocol() == "POST", at+".tunnel.protocol") // the explicit proxy knows CONNECT alone
	c.loadBalancer(at+".loadBalancer", p.LoadBalancer, p.OutlierDetection)
	c.connectionPool(at+".connectionPool", p.ConnectionPool)
	c.outlierDetection(at+".outlierDetection", p.OutlierDetection)
	c.clientTLS(at+".tls", p.Tls)
	for i, port := range p.PortLevelSettings {
		c.portSettings(index(at+".portLevelSettings", i), port)
	}
	if t := p.Tunnel; t != nil {
		if t.Protocol != "" && t.Protocol != "CONNECT" && t.Protocol != "POST" {
			c.errorf(at+".tunnel.protocol", "unknown protocol %q: it is CONNECT or POST", shorten(t.Protocol))
		}
		if !isIP(t.TargetHost) {
			if problem := hostProblem(t.TargetHost, false); problem != "" {
				c.errorf(at+".tunnel.targetHost", "%s", problem)
			}
		}
		c.port(at+".tunnel.targetPort", t.TargetPort)
	}
	if b := p.RetryBudget; b != nil {
		c.percent(at+".retryBudget.percent", b.Percent.GetValue())
	}
}

func (c *checker) portSettings(at string, p *networking.TrafficPolicy_PortTrafficPolicy) {
	if p.Port == nil {
		c.errorf(at+".port", "a port is missing")
	} else {
		c.port(at+".port.number", p.Port.Number)
	}
	if p.LoadBalancer == nil && p.ConnectionPool == nil && p.OutlierDetection == nil && p.Tls == nil {
		c.errorf(at, "the policy of the port is empty: give at least one field, or remove it")
	}
	c.loadBalancer(at+".loadBalancer", p.LoadBalancer, p.OutlierDetection)
	c.connectionPool(at+".connectionPool", p.ConnectionPool)
	c.outlierDetection(at+".outlierDetection", p.OutlierDetection)
	c.clientTLS(at+".tls", p.Tls)
}

func (c *checker) outlierDetection(at string, o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	c.duration(at+".interval", o.Interval)
	c.duration(at+".baseEjectionTime", o.BaseEjectionTime)
	c.percent(at+".maxEjectionPercent", float64(o.MaxEjectionPercent))
	c.percent(at+".minHealthPercent", float64(o.MinHealthPercent))
	if o.ConsecutiveErrors != 0 { //nolint:staticcheck // deprecated by Istio, still accepted
		c.warnf(at+".consecutiveErrors", "is deprecated: write consecutiveGatewayErrors or consecutive5xxErrors")
	}
	if o.ConsecutiveLocalOriginFailures.GetValue() > 0 && !o.SplitExternalLocalOriginErrors {
		c.errorf(at+".consecutiveLocalOriginFailures", "has no effect without splitExternalLocalOriginErrors: true")
	}
}

func (c *checker) connectionPool(at string, p *networking.ConnectionPoolSettings) {
	if p == nil {
		return
	}
	if p.Http == nil && p.Tcp == nil {
		c.errorf(at, "give tcp, http or both")
	}
	if h := p.Http; h != nil {
		c.httpPool(at+".http", h)
	}
	t := p.Tcp
	if t == nil {
		return
	}
	c.notNegative(at+".tcp.maxConnections", t.MaxConnections)
	c.duration(at+".tcp.connectTimeout", t.ConnectTimeout)
	c.duration(at+".tcp.maxConnectionDuration", t.MaxConnectionDuration)
	if t.IdleTimeout.AsDuration() != 0 { // 0s switches the timeout off
		c.duration(at+".tcp.idleTimeout", t.IdleTimeout)
	}
	c.duration(at+".tcp.tcpKeepalive.time", t.TcpKeepalive.GetTime())
	c.duration(at+".tcp.tcpKeepalive.interval", t.TcpKeepalive.GetInterval())
}

func (c *checker) httpPool(at string, h *networking.ConnectionPoolSettings_HTTPSettings) {
	c.notNegative(at+".http1MaxPendingRequests", h.Http1MaxPendingRequests)
	c.notNegative(at+".http2MaxRequests", h.Http2MaxRequests)
	c.notNegative(at+".maxRequestsPerConnection", h.MaxRequestsPerConnection)
	c.notNegative(at+".maxRetries", h.MaxRetries)
	c.notNegative(at+".maxConcurrentStreams", h.MaxConcurrentStreams)
	c.duration(at+".idleTimeout", h.IdleTimeout)
	if h.UseClientProtocol && h.H2UpgradePolicy == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE {
		c.errorf(at+".useClientProtocol", "cannot go with h2UpgradePolicy: UPGRADE")
	}
	if k := h.Http2KeepAlive; k != nil {
		if k.Interval == nil || k.Timeout == nil {
			c.errorf(at+".http2KeepAlive", "needs both interval and timeout")
		}
		c.duration(at+".http2KeepAlive.interval", k.Interval)
		c.duration(at+".http2KeepAlive.timeout", k.Timeout)
	}
}

func (c *checker) notNegative(at string, v int32) {
	if v < 0 {
		c.errorf(at, "%d is negative", v)
	}
}

func (c *checker) loadBalancer(at string, lb *networking.LoadBalancerSettings, outlier *networking.OutlierDetection) {
	if lb == nil {
		return
	}
	c.consistentHash(at+".consistentHash", lb.GetConsistentHash())
	if lb.LocalityLbSetting != nil && lb.ZoneAwareLbSetting != nil {
		c.errorf(at, "only one of localityLbSetting and zoneAwareLbSetting can be given")
	}
	c.withoutEffect(lb.ZoneAwareLbSetting != nil, at+".zoneAwareLbSetting")
	c.zoneAware(at+".zoneAwareLbSetting", lb.ZoneAwareLbSetting, outlier != nil)
	c.locality(at+".localityLbSetting", lb.LocalityLbSetting, outlier != nil)
	c.duration(at+".warmupDurationSecs", lb.WarmupDurationSecs) //nolint:staticcheck // deprecated by Istio, still accepted
	if lb.Warmup != nil && lb.WarmupDurationSecs != nil {       //nolint:staticcheck // as above
		c.errorf(at+".warmupDurationSecs", "cannot go with warmup: remove it")
	}
	if w := lb.Warmup; w != nil {
		if w.Duration == nil {
			c.errorf(at+".warmup.duration", "a duration is missing")
		}
		c.duration(at+".warmup.duration", w.Duration)
		c.percent(at+".warmup.minimumPercent", w.MinimumPercent.GetValue())
		if w.Aggression != nil && w.Aggression.Value <= 0 {
			c.errorf(at+".warmup.aggression", "must be greater than 0")
		}
	}
}

func (c *checker) consistentHash(at string, h *networking.LoadBalancerSettings_ConsistentHashLB) {
	if h == nil {
		return
	}
	if h.HashKey == nil {
		c.warnf(at, "there is nothing to hash by: give httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName")
	}
	if cookie := h.GetHttpCookie(); cookie != nil {
		if cookie.Name == "" {
			c.errorf(at+".httpCookie.name", "a name is missing")
		}
		seen := map[string]bool{}
		for i, a := range cookie.Attributes {
			if a.Name == "" || seen[a.Name] {
				c.errorf(index(at+".httpCookie.attributes", i)+".name", "the name %q is empty or given twice", a.Name)
			}
			seen[a.Name] = true
		}
	}
	if h.MinimumRingSize != 0 { //nolint:staticcheck // deprecated by Istio, still accepted
		c.warnf(at+".minimumRingSize", "is deprecated: write ringHash.minimumRingSize")
		if h.HashAlgorithm != nil {
			c.errorf(at+".minimumRingSize", "cannot go with ringHash or maglev")
		}
	}
	// Without a size the documented default of 65537 holds.
	if m := h.GetMaglev(); m.GetTableSize() != 0 && (m.TableSize >= 5_000_011 || !new(big.Int).SetUint64(m.TableSize).ProbablyPrime(0)) {
		c.errorf(at+".maglev.tableSize", "%d is not a prime below 5000011", m.TableSize)
	}
}

func (c *checker) clientTLS(at string, t *networking.ClientTLSSettings) {
	if t == nil {
		return
	}
	own := t.ClientCertificate + t.PrivateKey + t.CaCertificates + t.CaCrl
	originates := originates(t)
	if strings.HasPrefix(t.CredentialName, "configmap://") {
		c.errorf(at+".credentialName", "authorities in ConfigMaps are not read: write a Secret with ca.crt, or give caCertificates")
		return
	}
	if t.GetInsecureSkipVerify().GetValue() && originates {
		switch {
		case t.CaCertificates != "" || len(t.SubjectAltNames) > 0:
			c.errorf(at+".insecureSkipVerify", "cannot go with caCertificates or subjectAltNames")
		case t.CredentialName != "" && t.Mode == networking.ClientTLSSettings_SIMPLE: // of which only the authority would count
			c.errorf(at+".insecureSkipVerify", "cannot go with credentialName in mode SIMPLE")
		}
	}
	switch {
	case originates && t.CredentialName != "":
		if own != "" {
			c.errorf(at+".credentialName", "cannot go with clientCertificate, privateKey, caCertificates or caCrl")
		}
	case t.Mode == networking.ClientTLSSettings_MUTUAL && (t.ClientCertificate == "" || t.PrivateKey == ""):
		c.errorf(at, "mode MUTUAL needs clientCertificate and privateKey, or credentialName")
	case t.Mode == networking.ClientTLSSettings_ISTIO_MUTUAL && own+t.CredentialName != "":
		c.warnf(at, "mode ISTIO_MUTUAL takes the certificates of the mesh: clientCertificate, privateKey, caCertificates and credentialName are ignored")
	case t.Mode == networking.ClientTLSSettings_DISABLE && own+t.CredentialName+t.Sni != "":
		c.warnf(at+".mode", "mode DISABLE sends plain text: what else is said here is ignored")
	case t.Mode == networking.ClientTLSSettings_SIMPLE && t.ClientCertificate+t.PrivateKey != "":
		c.warnf(at+".mode", "mode SIMPLE shows no certificate: clientCertificate and privateKey are ignored, write MUTUAL to use them")
	}
	c.unverifiedServer(at, t)
}

// originates says that this is TLS to a server that is not of the mesh.
func originates(t *networking.ClientTLSSettings) bool {
	return t.Mode == networking.ClientTLSSettings_SIMPLE || t.Mode == networking.ClientTLSSettings_MUTUAL
}

// unverifiedServer warns where nothing says who may vouch for the server.
func (c *checker) unverifiedServer(at string, t *networking.ClientTLSSettings) {
	switch {
	case !originates(t) || t.CaCertificates != "" || t.CredentialName != "":
	case t.GetInsecureSkipVerify().GetValue():
		c.warnf(at+".insecureSkipVerify", "the server's certificate is not verified, so anybody in between can be it: give caCertificates instead")
	default:
		c.warnf(at, "no caCertificates are given, so every authority that this machine trusts may vouch for the server: give caCertificates, or caCertificates: system if that is meant")
	}
}
