package model

import (
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"
)

// KeyPlace is where the keys of a token issuer are.
type KeyPlace struct {
	// URI is that of a key set or, if Discovery, of a document that says where it is
	// (OpenID Connect Discovery 1.0, section 4).
	URI       string
	Discovery bool
	// Entry is the ServiceEntry that says what the host means, "<namespace>/<host>", and
	// Addresses are its endpoints, each host:port; empty if the host means what it does
	// outside of the mesh.
	Entry     string
	Addresses []string
}

// Key tells places apart: one URI means different servers to those who have a
// ServiceEntry for its host and to others, and different things to those who take it for
// a key set and for a document. No author can write a URI that reads like the key of
// another one's place: it has no space.
func (p KeyPlace) Key() string {
	key := strings.ReplaceAll(p.URI, " ", "%20")
	if p.Discovery {
		key += " (discovery)"
	}
	if p.Entry != "" {
		key += " by " + p.Entry
	}
	return key
}

// discoveryPath is behind the issuer's name, see KeyPlace.URI.
const discoveryPath = "/.well-known/openid-configuration"

// KeyPlace says where pilot gets the keys of a rule of a namespace; false if it gets
// them from nowhere: they are in the rule, there is no URL, or their server is a service
// of the mesh, which only proxies can reach.
func (m *Mesh) KeyPlace(namespace string, rule *security.JWTRule) (KeyPlace, bool) {
	p := KeyPlace{URI: rule.GetJwksUri()}
	switch {
	case rule.GetJwks() != "":
		return p, false
	case p.URI == "":
		if URLProblem(rule.GetIssuer()) != "" {
			return p, false
		}
		p.URI, p.Discovery = strings.TrimSuffix(rule.GetIssuer(), "/")+discoveryPath, true
	}
	u, err := url.Parse(p.URI)
	if err != nil || u.Hostname() == "" {
		return p, false
	}
	s := m.PolicyHost(ResolveHost(u.Hostname(), namespace, m.DomainSuffix), namespace)
	if s == nil {
		return p, true
	}
	if !s.External {
		return p, false
	}
	p.Entry = s.Namespace + "/" + s.Hostname
	return p, p.resolve(s, u)
}

// resolve takes the endpoints of a ServiceEntry; false if pilot cannot reach them as a
// proxy would.
func (p *KeyPlace) resolve(s *Service, u *url.URL) bool {
	port := uint64(80)
	if u.Scheme == "https" {
		port = 443
	}
	if u.Port() != "" {
		var err error
		if port, err = strconv.ParseUint(u.Port(), 10, 16); err != nil {
			return false
		}
	}
	if len(s.Endpoints) == 0 {
		return s.Resolution != Static
	}
	for _, e := range s.Endpoints {
		to, ok := e.Ports[uint32(port)]
		if !ok || e.Proxy != nil || strings.HasPrefix(e.Address, "unix://") {
			return false
		}
		p.Addresses = append(p.Addresses, net.JoinHostPort(e.Address, strconv.FormatUint(uint64(to), 10)))
	}
	slices.Sort(p.Addresses)
	return true
}
