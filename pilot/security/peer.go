package security

import "github.com/writ-mesh/writ/pilot/model"

// ServerMode gives the effective PeerAuthentication mode of a workload's port.
func (c *Compiler) ServerMode(namespace string, labels map[string]string, port uint32) model.PeerMode {
	return c.peer.Of(namespace, labels, port)
}
