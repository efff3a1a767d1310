package meshdir

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/writ-mesh/writ/pilot/model"
)

func checkService(c *checker) {
	s := c.object.spec.(*corev1.Service)
	if !isLabel(s.Name) {
		c.errorf("metadata.name", "%q is not valid for a Service: use lower-case letters, digits and '-', at most 63", shorten(s.Name))
	}
	if types := []string{"", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}; !slices.Contains(types, string(s.Spec.Type)) {
		c.errorf("spec.type", "unknown type %q%s", shorten(string(s.Spec.Type)), didYouMean(string(s.Spec.Type), types[1:]))
	}
	external := s.Spec.Type == corev1.ServiceTypeExternalName
	if external {
		c.externalName(s)
	}
	if len(s.Spec.Ports) == 0 && s.Spec.ClusterIP != corev1.ClusterIPNone && !external {
		c.errorf("spec.ports", "a Service needs at least one port")
	}
	c.labels("spec.selector", s.Spec.Selector)
	c.clusterAddresses(s)
	c.serviceFieldsWithoutEffect(s)
	names := map[string]bool{}
	for i, p := range s.Spec.Ports {
		at := index("spec.ports", i)
		c.servicePort(at, p)
		switch {
		case p.Name == "" && len(s.Spec.Ports) > 1:
			c.errorf(at+".name", "with several ports each needs a name")
		case p.Name != "" && names[p.Name]:
			c.errorf(at+".name", "the port name %q is given twice", p.Name)
		}
		names[p.Name] = true
		for j, other := range s.Spec.Ports[:i] {
			if other.Port == p.Port && other.Protocol == p.Protocol {
				c.errorf(at+".port", "port %d is given twice, first by ports[%d]", p.Port, j)
			}
		}
	}
	if c.failed() || external {
		return
	}
	for i, p := range s.Spec.Ports {
		c.spokenPort(index("spec.ports", i), p)
	}
}

// clusterAddresses checks the addresses by which a service is called; None is a service
// without.
func (c *checker) clusterAddresses(s *corev1.Service) {
	check := func(at, address string) {
		if address != "" && address != corev1.ClusterIPNone && !isIP(address) {
			c.errorf(at, "%q is not an IP address, nor None", shorten(address))
		}
	}
	check("spec.clusterIP", s.Spec.ClusterIP)
	for i, address := range s.Spec.ClusterIPs {
		check(index("spec.clusterIPs", i), address)
	}
}

// serviceFieldsWithoutEffect warns of what decides in Kubernetes which endpoint is taken,
// or who may call, and what no Envoy goes by.
func (c *checker) serviceFieldsWithoutEffect(s *corev1.Service) {
	if a := s.Spec.SessionAffinity; a != "" && a != corev1.ServiceAffinityNone {
		c.warnf("spec.sessionAffinity", "it has no effect in a mesh: write a DestinationRule with loadBalancer.consistentHash")
	}
	local := s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	c.withoutEffect(local, "spec.internalTrafficPolicy")
	c.withoutEffect(s.Spec.TrafficDistribution != nil, "spec.trafficDistribution")
	c.withoutEffect(len(s.Spec.ExternalIPs) > 0, "spec.externalIPs")
	if len(s.Spec.LoadBalancerSourceRanges) > 0 {
		c.warnf("spec.loadBalancerSourceRanges", "it has no effect in this version: write an AuthorizationPolicy with ipBlocks")
	}
}

// externalName checks another name of a service, or of a host outside of the mesh.
func (c *checker) externalName(s *corev1.Service) {
	const at = "spec.externalName"
	name := strings.TrimSuffix(s.Spec.ExternalName, ".")
	if name == "" {
		c.errorf(at, "a Service of type ExternalName needs the name that it stands for")
		return
	}
	if problem := hostProblem(name, false); problem != "" {
		c.errorf(at, "%s", problem)
		return
	}
	for _, p := range s.Spec.Ports {
		if problem := c.options.addressProblem(name, uint32(max(0, p.Port))); problem != "" {
			c.errorf(at, "%s:%d %s", shorten(name), p.Port, problem)
		}
	}
	if len(s.Spec.Selector) > 0 {
		c.warnf("spec.selector", "has no effect on a Service of type ExternalName")
	}
}

func (c *checker) servicePort(at string, p corev1.ServicePort) {
	if p.Name != "" && !isLabel(p.Name) {
		c.errorf(at+".name", "%q is not a port name: use lower-case letters, digits and '-'", shorten(p.Name))
	}
	c.port(at+".port", uint32(max(0, p.Port)))
	if t := p.TargetPort; t.Type == intstr.Int && t.IntVal != 0 {
		c.port(at+".targetPort", uint32(max(0, t.IntVal)))
	} else if t.Type == intstr.String && isNumber(t.StrVal) {
		c.errorf(at+".targetPort", "%q in quotes would be the name of a port, and a name has a letter in it: remove the quotes", shorten(t.StrVal))
	} else if t.Type == intstr.String && !isLabel(t.StrVal) {
		c.errorf(at+".targetPort", "%q is neither a number nor a port name", shorten(t.StrVal))
	}
	if transports := []string{"", "TCP", "UDP", "SCTP"}; !slices.Contains(transports, string(p.Protocol)) {
		c.errorf(at+".protocol", "unknown protocol %q: it is TCP, UDP or SCTP; write the application protocol into appProtocol or the port's name", shorten(string(p.Protocol)))
	}
}

// spokenPort warns of a port of which nothing says what is spoken there: nobody guesses
// it from the first bytes, as Istio may.
func (c *checker) spokenPort(at string, p corev1.ServicePort) {
	if p.Protocol == corev1.ProtocolUDP {
		return
	}
	if p.AppProtocol != nil && *p.AppProtocol != "" {
		if !saysProtocol("", *p.AppProtocol) {
			c.warnf(at+".appProtocol", "%q is no protocol that is known here, so the port is plain TCP: known are %s", shorten(*p.AppProtocol), protocolNames)
		}
		return
	}
	if !saysProtocol(p.Name, "") {
		c.warnf(at+".name", "neither the name nor appProtocol says what is spoken at port %d, so it is plain TCP, without HTTP routes and policies: write for example name: %s, or tcp-... if that is meant", p.Port, suggestedName(p.Name))
	}
}

func suggestedName(name string) string {
	if name == "" {
		return "http"
	}
	return "http-" + shorten(name)
}

// checkSecret accepts what Istio's gateways take: tls.crt and tls.key of a
// kubernetes.io/tls secret, or cert and key of a generic one, and ca.crt or
// cacert for the clients' authority.
func checkSecret(c *checker) {
	s := c.object.spec.(*corev1.Secret)
	if types := []string{"", "Opaque", "kubernetes.io/tls"}; !slices.Contains(types, string(s.Type)) {
		c.warnf("type", "a Secret of type %q is not used by a mesh, only kubernetes.io/tls and Opaque", shorten(string(s.Type)))
		return
	}
	secret := secretOf(c.object)
	if len(secret.Cert)+len(secret.Key)+len(secret.CA)+len(secret.CRL) == 0 {
		c.warnf("", "has none of tls.crt, tls.key, ca.crt, cert, key and cacert: it is not used")
		return
	}
	if s.Type == "kubernetes.io/tls" && (len(secret.Cert) == 0 || len(secret.Key) == 0) {
		c.errorf("data", "a Secret of type kubernetes.io/tls needs tls.crt and tls.key")
		return
	}
	if len(secret.Cert)+len(secret.Key) > 0 {
		if _, err := tls.X509KeyPair(secret.Cert, secret.Key); err != nil {
			c.errorf("data", "certificate and key do not go together: %s", tlsProblem(err))
		}
	}
	if len(secret.CA) > 0 && !x509.NewCertPool().AppendCertsFromPEM(secret.CA) {
		c.errorf("data", "ca.crt has no certificate in PEM")
	}
	if len(secret.CRL) == 0 {
		return
	}
	if problem := revocationListProblem(secret.CRL); problem != "" {
		c.errorf("data", "ca.crl %s", problem)
	} else if len(secret.CA) == 0 {
		c.warnf("data", "ca.crl has no effect without ca.crt, whose revocations it has")
	}
}

func tlsProblem(err error) string { return strings.TrimPrefix(err.Error(), "tls: ") }

func secretOf(o *object) *model.Secret {
	s := o.spec.(*corev1.Secret)
	value := func(keys ...string) []byte {
		for _, k := range keys {
			if v, ok := s.StringData[k]; ok {
				return []byte(v)
			}
			if v, ok := s.Data[k]; ok {
				return v
			}
		}
		return nil
	}
	return &model.Secret{Meta: o.meta, Cert: value("tls.crt", "cert"), Key: value("tls.key", "key"), CA: value("ca.crt", "cacert"), CRL: value("ca.crl", "crl")}
}

// keyPairProblem says what is wrong with a certificate and its key in PEM.
func keyPairProblem(cert, key []byte) string {
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		return fmt.Sprintf("certificate and key do not go together: %s", tlsProblem(err))
	}
	return ""
}
