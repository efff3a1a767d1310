package meshdir

import (
	"net"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// checkSidecar follows the rules of Istio's validation of the kind.
func checkSidecar(c *checker) {
	s := c.object.spec.(*networking.Sidecar)
	c.workloadSelector("spec.workloadSelector", "labels", s.WorkloadSelector != nil, s.WorkloadSelector.GetLabels())
	if len(s.Egress)+len(s.Ingress) == 0 && s.OutboundTrafficPolicy == nil && s.InboundConnectionPool == nil {
		c.errorf("spec", "the Sidecar says nothing: give ingress, egress, outboundTrafficPolicy or inboundConnectionPool")
	}
	seen := map[uint32]bool{}
	for i, in := range s.Ingress {
		at := index("spec.ingress", i)
		c.ingress(at, in)
		if n := in.Port.GetNumber(); seen[n] {
			c.errorf(at+".port.number", "port %d is given twice", n)
		}
		seen[in.Port.GetNumber()] = true
	}
	c.connectionPool("spec.inboundConnectionPool", s.InboundConnectionPool)
	c.egressListeners(s.Egress)
	c.outboundTrafficPolicy(s.OutboundTrafficPolicy)
}

func (c *checker) ingress(at string, in *networking.IstioIngressListener) {
	if in.Port == nil {
		c.errorf(at+".port", "a port is missing")
		return
	}
	c.sidecarPort(at, in.Port)
	c.withoutEffect(in.Bind != "", at+".bind")
	c.sidecarAddress(at, in.Port.Number, in.Bind)
	if e := in.DefaultEndpoint; e != "" {
		if unix, ok := strings.CutPrefix(e, unixPrefix); ok {
			c.unixPath(at+".defaultEndpoint", unix)
		} else if host, port, err := net.SplitHostPort(e); err != nil || !slices.Contains([]string{"", "127.0.0.1", "0.0.0.0", "::1", "::"}, host) || !validPort(port) {
			c.errorf(at+".defaultEndpoint", "%q is not 127.0.0.1:PORT, 0.0.0.0:PORT or unix:///PATH", shorten(e))
		} else if n, _ := strconv.ParseUint(port, 10, 16); slices.Contains(proxyPorts, uint32(n)) {
			c.errorf(at+".defaultEndpoint", "%q is reserved: the port is the proxy's own", shorten(e))
		}
	}
	c.unsupported(in.Tls != nil, at+".tls")
	if t := in.Tls; t != nil {
		protocol, _ := protocolOf(in.Port.Protocol)
		switch {
		case protocol != model.HTTPS && protocol != model.TLS:
			c.errorf(at+".tls", "a listener of protocol %s cannot have tls settings: use TLS or HTTPS", in.Port.Protocol)
		case t.HttpsRedirect || t.CredentialName != "" || len(t.CredentialNames)+len(t.TlsCertificates)+len(t.SubjectAltNames) > 0:
			c.errorf(at+".tls", "a sidecar takes mode, serverCertificate, privateKey and caCertificates only")
		case t.Mode == networking.ServerTLSSettings_ISTIO_MUTUAL || t.Mode == networking.ServerTLSSettings_AUTO_PASSTHROUGH:
			c.errorf(at+".tls.mode", "%s cannot be set in a Sidecar", t.Mode)
		}
		c.serverTLS(at+".tls", t)
	}
	c.connectionPool(at+".connectionPool", in.ConnectionPool)
	c.withoutEffect(in.CaptureMode != networking.CaptureMode_DEFAULT, at+".captureMode")
	if protocol, _ := protocolOf(in.Port.Protocol); in.ConnectionPool.GetHttp() != nil && !protocol.IsHTTP() {
		c.warnf(at+".connectionPool.http", "port %d is not HTTP: only tcp counts for it", in.Port.Number)
	}
}

func validPort(s string) bool {
	p, err := strconv.Atoi(s)
	return err == nil && p >= 1 && p <= 65535
}

func (c *checker) sidecarPort(at string, p *networking.SidecarPort) {
	if p.Name != "" && !isAnyLabel(p.Name) {
		c.errorf(at+".port.name", "%q is not a port name", shorten(p.Name))
	}
	if _, known := protocolOf(p.Protocol); p.Protocol != "" && !known {
		c.errorf(at+".port.protocol", "unknown protocol %q: it is one of %s", shorten(p.Protocol), protocolNames)
	}
	if p.TargetPort != 0 { //nolint:staticcheck // deprecated by Istio, refused there too
		c.errorf(at+".port.targetPort", "has no effect on a Sidecar: remove it")
	}
}

func (c *checker) sidecarAddress(at string, port uint32, bind string) {
	c.port(at+".port.number", port)
	if bind != "" && !isIP(bind) {
		c.errorf(at+".bind", "%q is not an IP address", shorten(bind))
	}
}

// egressAddress: unlike callers, the workload's own program may come by a socket.
func (c *checker) egressAddress(at string, e *networking.IstioEgressListener) {
	unix, ok := strings.CutPrefix(e.Bind, unixPrefix)
	if !ok || e.Port.Number != 0 {
		c.sidecarAddress(at, e.Port.Number, e.Bind)
		return
	}
	c.unixPath(at+".bind", unix)
	if e.CaptureMode == networking.CaptureMode_IPTABLES {
		c.errorf(at+".captureMode", "nothing is redirected to a unix socket: write NONE, or remove it")
	}
}

func (c *checker) egressListeners(egress []*networking.IstioEgressListener) {
	seen := map[uint32]bool{}
	sockets := map[string]bool{}
	for i, e := range egress {
		at := index("spec.egress", i)
		if e.Port == nil {
			if i != len(egress)-1 {
				c.errorf(at, "a listener without a port takes all that the others do not: it must be the last one")
			}
		} else {
			c.sidecarPort(at, e.Port)
			c.withoutEffect(e.Bind != "", at+".bind")
			c.withoutEffect(e.CaptureMode != networking.CaptureMode_DEFAULT && e.Port.Number != 0, at+".captureMode")
			c.egressAddress(at, e)
			if n := e.Port.Number; n == 0 && sockets[e.Bind] {
				c.errorf(at+".bind", "%q is given twice", shorten(e.Bind))
			} else if n != 0 && seen[n] {
				c.errorf(at+".port.number", "port %d is given twice", n)
			}
			seen[e.Port.Number], sockets[e.Bind] = true, true
		}
		if len(e.Hosts) == 0 {
			c.errorf(at+".hosts", "a listener needs at least one host; \"*/*\" is all")
		}
		for j, h := range e.Hosts {
			c.egressHost(index(at+".hosts", j), h)
		}
		c.repeatedHosts(at+".hosts", e.Hosts)
	}
}

// repeatedHosts warns of hosts that others say already.
func (c *checker) repeatedHosts(at string, hosts []string) {
	local := func(h string) string {
		if rest, ok := strings.CutPrefix(h, "./"); ok {
			return c.object.meta.Namespace + "/" + rest
		}
		return h
	}
	first := map[string]int{}
	for i, h := range hosts {
		if _, there := first[local(h)]; !there && !strings.HasPrefix(h, "~") {
			first[local(h)] = i
		}
	}
	for i, h := range hosts {
		namespace, _, _ := strings.Cut(local(h), "/")
		for _, wide := range []string{"*/*", namespace + "/*", local(h)} {
			if j, there := first[wide]; there && j != i && !strings.HasPrefix(h, "~") {
				c.warnf(index(at, i), "%q is said already by %q: remove one", shorten(h), shorten(hosts[j]))
				break
			}
		}
	}
}

// egressHost: namespace/host, where namespace may be *, . or ~.
func (c *checker) egressHost(at, host string) {
	ns, name, ok := strings.Cut(host, "/")
	if !ok || ns == "" || name == "" {
		c.errorf(at, "%q is not namespace/host: write for example ./* or */reviews.default.svc.cluster.local", shorten(host))
		return
	}
	if n := strings.TrimPrefix(ns, "~"); n != "" && n != "*" && n != "." && !isLabel(n) {
		c.errorf(at, "%q is not a namespace, \".\", \"*\" or \"~\"", shorten(ns))
	}
	if isIP(name) {
		c.errorf(at, "%q is an address: name a host", shorten(name))
		return
	}
	c.fullHost(at, name)
}

func (c *checker) outboundTrafficPolicy(p *networking.OutboundTrafficPolicy) {
	if p == nil || p.EgressProxy == nil {
		return
	}
	const at = "spec.outboundTrafficPolicy.egressProxy"
	if p.Mode != networking.OutboundTrafficPolicy_ALLOW_ANY {
		c.errorf(at, "needs mode ALLOW_ANY")
	}
	if p.EgressProxy.Port == nil {
		c.errorf(at+".port", "a port is missing")
	}
	c.destination(at, p.EgressProxy)
	c.unsupported(true, at) // what is unknown would go out directly
}
