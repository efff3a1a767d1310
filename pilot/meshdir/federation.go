package meshdir

import (
	"slices"
	"strings"

	meshv1 "istio.io/api/mesh/v1alpha1"
)

// federatedDomains are the trust domains besides the mesh's own whose identities it
// accepts: those that MeshConfig.caCertificates names, sorted.
func federatedDomains(m *meshv1.MeshConfig) []string {
	var out []string
	for _, c := range m.GetCaCertificates() {
		out = append(out, c.GetTrustDomains()...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// caCertificates checks which other trust domains are accepted. Their roots come from
// the authority (federates_with), which fetches them and follows their changes.
func (c *checker) caCertificates(m *meshv1.MeshConfig) {
	for i, cert := range m.GetCaCertificates() {
		at := index("caCertificates", i)
		if len(cert.GetTrustDomains()) == 0 {
			c.errorf(at+".trustDomains", "say of which other trust domain this is: without it another root would vouch for identities of %s; its own further roots are the authority's affair (root-cert.pem)", m.GetTrustDomain())
		}
		c.unsupported(len(cert.GetCertSigners()) > 0, at+".certSigners")
		if cert.GetPem() != "" {
			c.warnf(at+".pem", "it has no effect: the authority fetches the bundles of other trust domains (federates_with)")
		}
		if cert.GetSpiffeBundleUrl() != "" {
			c.warnf(at+".spiffeBundleUrl", "it has no effect: the authority fetches the bundles of other trust domains (federates_with)")
		}
		for j, td := range cert.GetTrustDomains() {
			c.federatedDomain(m, index(at+".trustDomains", j), td)
		}
	}
	if len(m.GetCaCertificates()) > 0 && len(m.GetTrustDomainAliases()) > 0 {
		c.errorf("trustDomainAliases", "this version has no aliases of a mesh that accepts other trust domains (caCertificates)")
	}
}

func (c *checker) federatedDomain(m *meshv1.MeshConfig, at, td string) {
	switch problem := trustDomainProblem(td); {
	case problem != "":
		c.errorf(at, "%s", problem)
	case strings.Contains(td, "_"):
		c.errorf(at, "Envoys cannot verify that certificates are of %q alone: its name has an underscore", td)
	case td == m.GetTrustDomain():
		c.errorf(at, "%s is the mesh's own trust domain", td)
	case td == domainSuffix:
		c.errorf(at, "policies mean the mesh's own trust domain by %s: another one cannot be called that", domainSuffix)
	}
}
