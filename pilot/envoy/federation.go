package envoy

import (
	"slices"
	"strings"

	"github.com/writ-mesh/writ/pilot/model"
)

// SecretFederated is the SDS secret with the trust bundles of the mesh and of the
// other trust domains, each for its own identities alone.
const SecretFederated = "FEDERATED"

// serverRoots is the secret to verify clients with, and the beginnings of the SPIFFE
// IDs that they may have: workloads of the mesh, and whoever another trust domain
// vouches for, as its paths are its own affair.
func serverRoots(m *model.Mesh) (secret string, prefixes []string) {
	for _, td := range TrustDomains(m) {
		prefixes = append(prefixes, spiffeScheme+td+"/ns/")
	}
	if len(m.FederatedDomains) == 0 {
		return SecretRoot, prefixes
	}
	for _, td := range m.FederatedDomains {
		prefixes = append(prefixes, spiffeScheme+td+"/")
	}
	return SecretFederated, prefixes
}

// clientRoots is the secret to verify a server with that may have one of some SPIFFE
// IDs. A server of the mesh is verified by the mesh's own roots only.
func clientRoots(m *model.Mesh, ids []string) string {
	for _, id := range ids {
		td, _, _ := strings.Cut(strings.TrimPrefix(id, spiffeScheme), "/")
		if strings.HasPrefix(id, spiffeScheme) && slices.Contains(m.FederatedDomains, td) {
			return SecretFederated
		}
	}
	return SecretRoot
}
