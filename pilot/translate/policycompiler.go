package translate

import (
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
)

// PolicyCompiler says what the security policies of the mesh come to: package
// security does, and tests have simpler ones. It must be safe for concurrent use
// and must answer alike for proxies that differ in nothing but name, node and
// address.
type PolicyCompiler interface {
	// ServerMode is how the workload with these labels takes mutual TLS on port.
	ServerMode(namespace string, labels map[string]string, port uint32) model.PeerMode
	// HTTP is for one inbound HTTP port of a sidecar, or for a gateway with the
	// zero port.
	HTTP(p *model.Proxy, port model.WorkloadPort) (*security.HTTP, error)
	// TCP is for one inbound port that is not HTTP.
	TCP(p *model.Proxy, port model.WorkloadPort) (*security.TCP, error)
}
