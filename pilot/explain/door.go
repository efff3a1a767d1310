package explain

import (
	"net"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// door is how a port of a gateway takes callers.
type door uint8

// The doors. Any is one where callers may have identities, or where servers of the port
// differ.
const (
	doorAny   door = iota
	doorPlain      // without TLS
	doorTLS        // TLS that asks for no certificate, or is passed on
	doorMesh       // only with a certificate of the mesh
)

func doorOf(servers []*networking.Server) door {
	var out []door
	for _, s := range servers {
		d := doorAny
		switch {
		case s.GetTls() == nil:
			d = doorPlain
		case s.GetTls().GetMode() == networking.ServerTLSSettings_ISTIO_MUTUAL:
			d = doorMesh
		case s.GetTls().GetMode() != networking.ServerTLSSettings_MUTUAL && s.GetTls().GetMode() != networking.ServerTLSSettings_OPTIONAL_MUTUAL:
			d = doorTLS
		}
		out = append(out, d)
	}
	if out = slices.Compact(out); len(out) != 1 {
		return doorAny
	}
	return out[0]
}

// serversFor are the servers of a gateway at a port, those for a host if there are any.
func serversFor(m *model.Mesh, p *model.Proxy, port uint32, host string) []*networking.Server {
	var all, its []*networking.Server
	for _, g := range p.Serves(m.Gateways, m.RootNamespace) {
		for _, s := range g.Spec.GetServers() {
			if openedAt(p, s) != port {
				continue
			}
			all = append(all, s)
			if slices.ContainsFunc(s.GetHosts(), func(h string) bool { return model.HostMatches(h[strings.LastIndexByte(h, '/')+1:], host) }) {
				its = append(its, s)
			}
		}
	}
	if host == "" || len(its) == 0 {
		return all
	}
	return its
}

// openedAt is the port at which a gateway has a server.
func openedAt(p *model.Proxy, s *networking.Server) uint32 {
	if moved, ok := p.GatewayPorts[s.GetPort().GetNumber()]; ok {
		return moved
	}
	return s.GetPort().GetNumber()
}

func hostWithoutPort(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}

// mode is the mode of mutual TLS that comes to the same for sets of requests.
func (d door) mode() model.PeerMode {
	switch d {
	case doorPlain:
		return model.Disable
	case doorMesh:
		return model.Strict
	case doorAny, doorTLS:
	}
	return model.Permissive
}
