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
		for _, p := range policy.RegoPlacements(proxy) {
			way := fmt.Sprint(p)
			if by[way] == nil {
				by[way] = regoPlacement(p)
				ways[p.Policy] = append(ways[p.Policy], by[way])
			}
			by[way].Proxies++
		}
	}
	var out []*pilotpb.RegoPlacement
	for _, p := range m.RegoPolicies {
		out = append(out, ways[p.Ref]...)
	}
	return out
}

func regoPlacement(p security.RegoPlacement) *pilotpb.RegoPlacement {
	out := &pilotpb.RegoPlacement{Policy: p.Policy.Namespace + "/" + p.Policy.Name, Runs: p.Runs}
	for _, r := range p.Remote {
		out.Remote = append(out.Remote, &pilotpb.RegoReason{Expression: r.Expression, File: r.File, Line: uint32(max(r.Line, 0)), Why: r.Why})
	}
	return out
}
