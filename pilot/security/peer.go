package security

import "github.com/writ-mesh/writ/pilot/model"

// Mode is how a port meets callers.
type Mode = model.PeerMode

// The modes.
const (
	ModePermissive = model.Permissive
	ModeStrict     = model.Strict
	ModeDisable    = model.Disable
)

// ServerMode gives the effective PeerAuthentication mode of a workload's port.
func (c *Compiler) ServerMode(namespace string, labels map[string]string, port uint32) Mode {
	return c.peer.Of(namespace, labels, port)
}
