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
	query, accept, err := f.manager.options.Read(section)
	return accepted{query, accept}, err
}

// accepted is a section that was read.
type accepted struct {
	query  string
	accept func()
}

// New implements plugins.Factory.
func (f factory) New(m *plugins.Manager, config any) plugins.Plugin {
	a, _ := config.(accepted)
	if a.accept != nil {
		a.accept()
	}
	f.manager.query.Store(&a.query)
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
