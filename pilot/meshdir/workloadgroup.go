package meshdir

import (
	networking "istio.io/api/networking/v1alpha3"
)

// checkWorkloadGroup follows the rules of Istio's validation of the kind. It is
// what workloads are made of that join by themselves.
func checkWorkloadGroup(c *checker) {
	g := c.object.spec.(*networking.WorkloadGroup)
	c.warnf("spec", "it has no effect in this version, no workload joins by itself: write a WorkloadEntry for each")
	if g.Template == nil {
		c.errorf("spec.template", "a template is missing: it is what its WorkloadEntries have in common")
	}
	c.labels("spec.metadata.labels", g.Metadata.GetLabels())
	if t := g.Template; t != nil {
		c.template("spec.template", t)
	}
	if p := g.Probe; p != nil {
		c.readinessProbe("spec.probe", p)
	}
}

// template is a WorkloadEntry that need not have an address.
func (c *checker) template(at string, t *networking.WorkloadEntry) {
	if t.Address == "" {
		c.labels(at+".labels", t.Labels)
		for name, port := range t.Ports {
			c.port(at+".ports["+name+"]", port)
			if !isAnyLabel(name) {
				c.errorf(at+".ports["+name+"]", "%q is not a port name: use letters, digits and '-'", shorten(name))
			}
		}
		return
	}
	c.workloadEntry(at, t, nil, true)
}

func (c *checker) readinessProbe(at string, p *networking.ReadinessProbe) {
	c.notNegative(at+".initialDelaySeconds", p.InitialDelaySeconds)
	c.notNegative(at+".timeoutSeconds", p.TimeoutSeconds)
	c.notNegative(at+".periodSeconds", p.PeriodSeconds)
	c.notNegative(at+".successThreshold", p.SuccessThreshold)
	c.notNegative(at+".failureThreshold", p.FailureThreshold)
	switch m := p.HealthCheckMethod.(type) {
	case *networking.ReadinessProbe_HttpGet:
		at += ".httpGet"
		c.port(at+".port", m.HttpGet.GetPort())
		if s := m.HttpGet.GetScheme(); s != "" && s != "HTTP" && s != "HTTPS" {
			c.errorf(at+".scheme", "%q is neither HTTP nor HTTPS", shorten(s))
		}
		for i, h := range m.HttpGet.GetHttpHeaders() {
			if !plainHeaderForm.MatchString(h.GetName()) {
				c.errorf(index(at+".httpHeaders", i)+".name", "%q is not the name of a header: use letters, digits, '-' and '_'", shorten(h.GetName()))
			}
		}
	case *networking.ReadinessProbe_TcpSocket:
		c.port(at+".tcpSocket.port", m.TcpSocket.GetPort())
	case *networking.ReadinessProbe_Grpc:
		c.port(at+".grpc.port", m.Grpc.GetPort())
	case *networking.ReadinessProbe_Exec:
		if len(m.Exec.GetCommand()) == 0 {
			c.errorf(at+".exec.command", "a command is missing")
		}
	default:
		c.errorf(at, "says nothing about how to look: give httpGet, tcpSocket, exec or grpc")
	}
}
