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
	} else if t.Type == intstr.String && !isLabel(t.StrVal) {
		c.errorf(at+".targetPort", "%q is neither a number nor a port name", shorten(t.StrVal))
	}
	if transports := []string{"", "TCP", "UDP", "SCTP"}; !slices.Contains(transports, string(p.Protocol)) {
		c.errorf(at+".protocol", "unknown protocol %q: it is TCP, UDP or SCTP; write the application protocol into appProtocol or the port's name", shorten(string(p.Protocol)))
	}
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
