package envoyfilter

import (
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

func (a *applier) cluster(m proto.Message, c *change) (kept bool) {
	cl := m.(*clusterv3.Cluster) //nolint:forcetypeassert // of the list of clusters
	if strings.HasPrefix(cl.GetName(), ownCluster) {
		return true
	}
	inbound := strings.HasPrefix(cl.GetName(), "inbound|")
	c.context = a.contextOf(inbound)
	for _, p := range a.byKind[networking.EnvoyFilter_CLUSTER] {
		switch {
		case !c.holds(p) || !a.isCluster(cl, inbound, p):
		case p.operation == networking.EnvoyFilter_Patch_REMOVE:
			return false
		case merges(p):
			from := p.value.(*clusterv3.Cluster) //nolint:forcetypeassert // it was read as one
			done, err := mergeClusterSocket(cl, from.GetTransportSocket())
			c.fail(p, err)
			if done {
				from = proto.CloneOf(from)
				from.TransportSocket = nil
			}
			name := cl.GetName()
			merge(cl.ProtoReflect(), from.ProtoReflect(), p.operation == networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST)
			cl.Name = name // by which routes speak of it
			c.did(p)
		}
	}
	return true
}

// mergeClusterSocket lays a transport socket over that of a cluster. Where endpoints choose
// among several, it is over the one of its name, and dropped if there is none.
func mergeClusterSocket(cl *clusterv3.Cluster, from *corev3.TransportSocket) (done bool, err error) {
	if from == nil {
		return false, nil
	}
	if len(cl.GetTransportSocketMatches()) == 0 {
		done, err = mergeSocket(cl.GetTransportSocket(), from)
		if !done && err == nil { // another kind of socket replaces what is there
			cl.TransportSocket, done = proto.CloneOf(from), true
		}
		return done, err
	}
	for _, m := range cl.GetTransportSocketMatches() {
		if m.GetTransportSocket().GetName() == from.GetName() {
			_, err = mergeSocket(m.GetTransportSocket(), from)
			break
		}
	}
	return true, err
}

// isCluster says that a patch means a cluster, by its name or by what it says: DIRECTION,
// PORT, SUBSET and HOST. The hosts of one for the program itself are its services.
func (a *applier) isCluster(cl *clusterv3.Cluster, inbound bool, p *patch) bool {
	m := p.match.GetCluster()
	if m == nil {
		return true
	}
	if want := m.GetName(); want != "" { // of inbound ones ours end with the program's address
		return want == cl.GetName() || inbound && strings.HasSuffix(want, "||") && strings.HasPrefix(cl.GetName(), want)
	}
	parts := strings.Split(cl.GetName(), "|")
	if len(parts) != 4 {
		return m.GetSubset() == "" && m.GetService() == "" && m.GetPortNumber() == 0
	}
	if m.GetSubset() != "" && m.GetSubset() != parts[2] || m.GetPortNumber() != 0 && parts[1] != strconv.FormatUint(uint64(m.GetPortNumber()), 10) {
		return false
	}
	if want := m.GetService(); want != "" {
		if inbound {
			return a.isServedBy(want, parts[1])
		}
		return want == parts[3]
	}
	return true
}

// isServedBy says that a port of the workload is one of a service.
func (a *applier) isServedBy(hostname, port string) bool {
	for _, s := range a.mesh.Services {
		if s.Hostname != hostname {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Proxy != a.proxy {
				continue
			}
			for _, at := range e.Ports {
				if strconv.FormatUint(uint64(at), 10) == port {
					return true
				}
			}
		}
	}
	return false
}
