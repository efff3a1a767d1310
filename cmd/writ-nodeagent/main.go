// Command writ-nodeagent gives the proxies of a node their identities and relays
// their configuration; see package nodeagent.
package main

import (
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/nodeagent"
)

func main() {
	service.Main(service.Spec[nodeagent.Config]{
		Name:     "writ-nodeagent",
		About:    "recognizes the workloads of a node, keeps their keys, serves SDS and relays ADS to pilot",
		Example:  "writ-nodeagent -config /etc/writ/nodeagent.yaml",
		Default:  nodeagent.DefaultConfig,
		Common:   func(c *nodeagent.Config) *service.Common { return &c.Common },
		Validate: (*nodeagent.Config).Validate,
		Run:      nodeagent.Run,
	})
}
