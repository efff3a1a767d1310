package model

import security "istio.io/api/security/v1beta1"

// PeerMode is how a port meets callers: the effective mode of PeerAuthentication.
type PeerMode int

// The modes. Permissive, Istio's default, takes mesh mTLS and plain text.
const (
	Permissive PeerMode = iota
	Strict
	Disable
)

// String gives Istio's name of the mode.
func (m PeerMode) String() string {
	switch m {
	case Strict:
		return "STRICT"
	case Disable:
		return "DISABLE"
	case Permissive:
		return "PERMISSIVE"
	}
	return "UNKNOWN"
}

// PeerModes is every PeerAuthentication of a mesh by where it counts. Of several
// in the same place the oldest wins, the one the mesh lists first.
type PeerModes struct {
	root       string
	namespaces map[string]*PeerAuthentication
	workloads  map[string][]*PeerAuthentication
}

// NewPeerModes sorts the PeerAuthentications of m.
func NewPeerModes(m *Mesh) PeerModes {
	modes := PeerModes{
		root:       m.RootNamespace,
		namespaces: map[string]*PeerAuthentication{},
		workloads:  map[string][]*PeerAuthentication{},
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

// Of gives the effective mode of a workload's port: that of its workload policy,
// else of its namespace, else of the root namespace, else PERMISSIVE. UNSET (or
// nothing) inherits. Port settings count in a workload policy only, by the
// workload's port. A policy with a selector in the root namespace selects
// nothing, as in Istio.
func (m PeerModes) Of(namespace string, labels map[string]string, port uint32) PeerMode {
	mode := Permissive
	inherit := func(mtls *security.PeerAuthentication_MutualTLS) {
		switch mtls.GetMode() {
		case security.PeerAuthentication_MutualTLS_STRICT:
			mode = Strict
		case security.PeerAuthentication_MutualTLS_PERMISSIVE:
			mode = Permissive
		case security.PeerAuthentication_MutualTLS_DISABLE:
			mode = Disable
		case security.PeerAuthentication_MutualTLS_UNSET:
		}
	}
	if pa := m.namespaces[m.root]; pa != nil {
		inherit(pa.Spec.GetMtls())
	}
	if namespace == m.root {
		return mode
	}
	if pa := m.namespaces[namespace]; pa != nil {
		inherit(pa.Spec.GetMtls())
	}
	for _, pa := range m.workloads[namespace] {
		if SelectorMatches(pa.Spec.GetSelector().GetMatchLabels(), labels) {
			inherit(pa.Spec.GetMtls())
			inherit(pa.Spec.GetPortLevelMtls()[port])
			break
		}
	}
	return mode
}
