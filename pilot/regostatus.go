package pilot

import (
	"fmt"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// regoPlacements says where the RegoPolicies of a mesh are decided, each as many
// times as there are ways of it, in the order of the mesh. What selects no proxy is
// not there.
func regoPlacements(m *model.Mesh, policy *security.Compiler) []*pilotpb.RegoPlacement {
	if len(m.RegoPolicies) == 0 {
		return nil
	}
	by := map[string]*pilotpb.RegoPlacement{}
	ways := map[model.Ref][]*pilotpb.RegoPlacement{}
	for _, proxy := range m.Proxies {
		counted := map[string]bool{}
		for _, port := range placingPorts(proxy) {
			for _, p := range policy.RegoPlacements(proxy, port) {
				way := fmt.Sprint(p)
				if by[way] == nil {
					by[way] = regoPlacement(p)
					ways[p.Policy] = append(ways[p.Policy], by[way])
				}
				if !counted[way] {
					counted[way] = true
					by[way].Proxies++
				}
			}
		}
	}
	var out []*pilotpb.RegoPlacement
	for _, p := range m.RegoPolicies {
		out = append(out, ways[p.Ref]...)
	}
	return out
}

// placingPorts are the ports of a proxy at which a policy may be decided in different
// ways: all that speak HTTP are one.
func placingPorts(p *model.Proxy) []model.WorkloadPort {
	var http, tcp []model.WorkloadPort
	for _, port := range p.Ports {
		if !port.Protocol.IsHTTP() {
			tcp = append(tcp, port)
		} else if http == nil {
			http = []model.WorkloadPort{{}}
		}
	}
	if len(http)+len(tcp) == 0 {
		http = []model.WorkloadPort{{}}
	}
	return append(http, tcp...)
}

func regoPlacement(p security.RegoPlacement) *pilotpb.RegoPlacement {
	out := &pilotpb.RegoPlacement{Policy: p.Policy.Namespace + "/" + p.Policy.Name, Runs: p.Runs}
	for _, r := range p.Remote {
		out.Remote = append(out.Remote, &pilotpb.RegoReason{Expression: r.Expression, File: r.File, Line: uint32(max(r.Line, 0)), Why: r.Why})
	}
	return out
}
