package bundle

import (
	"context"
	"crypto/rand"

	"github.com/open-policy-agent/opa/v1/plugins"
)

// factory makes the plugin that the caller's section configures. The work is the
// caller's; OPA only has to know that there is such a plugin.
type factory struct{ manager *Manager }

// Validate implements plugins.Factory.
func (f factory) Validate(_ *plugins.Manager, section []byte) (any, error) {
	return f.manager.options.Read(section)
}

// New implements plugins.Factory.
func (f factory) New(m *plugins.Manager, query any) plugins.Plugin {
	q, _ := query.(string)
	f.manager.query.Store(&q)
	close(f.manager.configured)
	return section{manager: m, name: f.manager.options.Plugin}
}

// section stands for the caller in OPA's list of plugins.
type section struct {
	manager *plugins.Manager
	name    string
}

// Start implements plugins.Plugin.
func (s section) Start(context.Context) error {
	s.manager.UpdatePluginStatus(s.name, &plugins.Status{State: plugins.StateOK})
	return nil
}

// Stop implements plugins.Plugin.
func (s section) Stop(context.Context) {}

// Reconfigure implements plugins.Plugin. As in the OPA-Envoy plugin it changes
// nothing.
func (s section) Reconfigure(context.Context, any) {}

func randomID() string { return rand.Text() }
