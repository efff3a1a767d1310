package attest

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/identity"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// Workload is a replica that the mesh places on this node, or whoever fulfils a
// registration.
type Workload struct {
	// ProxyID is the xDS node id of its proxy; of a registered workload, which has
	// none, its SPIFFE ID.
	ProxyID         string
	Name, Namespace string
	ID              spiffeid.ID
	// Registered: it is known by a registration, and pilot knows nothing of it.
	Registered bool
}

type placed struct {
	Workload
	uid *uint32
}

// placement is the checked form of NodePlacement.
type placement struct {
	byProxy map[string]placed
	byUID   map[uint32][]placed
}

// newPlacement checks p for a node and trust domain.
func newPlacement(p *configpb.NodePlacement, node string, td spiffeid.TrustDomain) (placement, error) {
	out := placement{byProxy: make(map[string]placed), byUID: make(map[uint32][]placed)}
	if p.GetNode() != node {
		return placement{}, fmt.Errorf("placement is for node %q, this is %q", p.GetNode(), node)
	}
	for _, w := range p.GetWorkloads() {
		id, err := spiffeid.FromString(w.GetSpiffeId())
		if err != nil {
			return placement{}, fmt.Errorf("workload %s/%s: %w", w.GetNamespace(), w.GetName(), err)
		}
		if _, _, ok := identity.WorkloadOf(id); !ok || !id.MemberOf(td) {
			return placement{}, fmt.Errorf("workload %s/%s: %s is no workload identity of trust domain %s", w.GetNamespace(), w.GetName(), id, td)
		}
		if w.GetProxyId() == "" {
			return placement{}, fmt.Errorf("workload %s/%s: no proxy id", w.GetNamespace(), w.GetName())
		}
		if other, ok := out.byProxy[w.GetProxyId()]; ok {
			return placement{}, fmt.Errorf("workload %s/%s: proxy id %s is also that of %s/%s", w.GetNamespace(), w.GetName(), w.GetProxyId(), other.Namespace, other.Name)
		}
		e := placed{Workload: Workload{ProxyID: w.GetProxyId(), Name: w.GetName(), Namespace: w.GetNamespace(), ID: id}}
		if a := w.GetAttestation(); a != nil && a.Uid != nil {
			uid := a.GetUid()
			e.uid = &uid
			out.byUID[uid] = append(out.byUID[uid], e)
		}
		out.byProxy[e.ProxyID] = e
	}
	return out, nil
}

// resolve says which workload a caller is. registered is the proxy id that the
// caller's process is registered for, if it is.
func (p placement) resolve(c Caller, registered string, isRegistered bool, overflow uint32) (Workload, error) {
	if isRegistered {
		w, ok := p.byProxy[registered]
		switch {
		case !ok:
			return Workload{}, fmt.Errorf("its process is registered for %s, which the mesh does not place on this node", registered)
		case w.uid != nil && *w.uid != c.UID:
			return Workload{}, fmt.Errorf("its process is registered for %s, which must run as uid %d", registered, *w.uid)
		}
		return w.Workload, nil
	}
	process := "its process is not registered"
	if c.StartTime == 0 {
		process = "its process cannot be seen from here"
	}
	of := p.byUID[c.UID]
	switch {
	case len(of) == 1 && c.UID != overflow:
		return of[0].Workload, nil
	case len(of) == 1:
		return Workload{}, fmt.Errorf("%s, and uid %d stands for every user that is unknown in this user namespace", process, c.UID)
	case len(of) > 1:
		return Workload{}, fmt.Errorf("%s, and uid %d is that of %d workloads of this node", process, c.UID, len(of))
	}
	return Workload{}, fmt.Errorf("%s, and no workload of this node is recognized by uid %d", process, c.UID)
}
