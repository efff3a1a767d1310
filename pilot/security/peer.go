package security

import (
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// Mode is how a port meets callers: the effective mode of PeerAuthentication.
type Mode int

// The modes. ModePermissive, Istio's default, takes mesh mTLS and plain text.
const (
	ModePermissive Mode = iota
	ModeStrict
	ModeDisable
)

// String gives Istio's name of the mode.
func (m Mode) String() string {
	switch m {
	case ModeStrict:
		return "STRICT"
	case ModeDisable:
		return "DISABLE"
	case ModePermissive:
		return "PERMISSIVE"
	}
	return "UNKNOWN"
}

// peerModes is every PeerAuthentication by where it counts. Of several in the
// same place the oldest wins, the one the mesh lists first.
type peerModes struct {
	root       string
	namespaces map[string]*model.PeerAuthentication
	workloads  map[string][]*model.PeerAuthentication
}

func newPeerModes(m *model.Mesh) peerModes {
	modes := peerModes{
		root:       m.RootNamespace,
		namespaces: map[string]*model.PeerAuthentication{},
		workloads:  map[string][]*model.PeerAuthentication{},
	}
	for _, pa := range m.PeerAuthentications {
		if len(pa.Spec.GetSelector().GetMatchLabels()) > 0 {
			modes.workloads[pa.Namespace] = append(modes.workloads[pa.Namespace], pa)
		} else if modes.namespaces[pa.Namespace] == nil {
			modes.namespaces[pa.Namespace] = pa
		}
	}
	return modes
}

// ServerMode gives the effective PeerAuthentication mode of a workload's port:
// that of its workload policy, else of its namespace, else of the root
// namespace, else PERMISSIVE. UNSET (or nothing) inherits. Port settings count
// in a workload policy only, by the workload's port. A policy with a selector in
// the root namespace selects nothing, as in Istio.
func (c *Compiler) ServerMode(namespace string, labels map[string]string, port uint32) Mode {
	mode := ModePermissive
	inherit := func(mtls *security.PeerAuthentication_MutualTLS) {
		switch mtls.GetMode() {
		case security.PeerAuthentication_MutualTLS_STRICT:
			mode = ModeStrict
		case security.PeerAuthentication_MutualTLS_PERMISSIVE:
			mode = ModePermissive
		case security.PeerAuthentication_MutualTLS_DISABLE:
			mode = ModeDisable
		case security.PeerAuthentication_MutualTLS_UNSET:
		}
	}
	if pa := c.peer.namespaces[c.peer.root]; pa != nil {
		inherit(pa.Spec.GetMtls())
	}
	if namespace == c.peer.root {
		return mode
	}
	if pa := c.peer.namespaces[namespace]; pa != nil {
		inherit(pa.Spec.GetMtls())
	}
	for _, pa := range c.peer.workloads[namespace] {
		if model.SelectorMatches(pa.Spec.GetSelector().GetMatchLabels(), labels) {
			inherit(pa.Spec.GetMtls())
			inherit(pa.Spec.GetPortLevelMtls()[port])
			break
		}
	}
	return mode
}
