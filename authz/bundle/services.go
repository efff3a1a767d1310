package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/config"
	"github.com/open-policy-agent/opa/v1/plugins/rest"
	"github.com/open-policy-agent/opa/v1/util"
)

// guardPrefix begins the names under which guarded clients stand in OPA's
// configuration in place of a service's own credentials.
const guardPrefix = "writ_guard_"

// guarded is a service's way to authenticate, with the guard around its client.
// To OPA it is a plugin for credentials.
type guarded struct {
	limits Limits
	// wraps and beside are the guard's.
	wraps  bool
	beside beside

	mu sync.Mutex
	// service is what OPA makes of the service's own section, whose text is raw.
	service rest.Config
	inner   rest.HTTPAuthPlugin
	raw     string
}

// NewClient implements rest.HTTPAuthPlugin.
func (g *guarded) NewClient(c rest.Config) (*http.Client, error) {
	home, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	g.mu.Lock()
	c.Credentials = g.service.Credentials
	inner := g.inner
	g.mu.Unlock()
	client, err := inner.NewClient(c)
	if err != nil {
		return nil, err
	}
	base := client.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	client.Transport = &guard{
		base: base, home: home, registry: strings.EqualFold(c.Type, "oci"),
		names: slices.Collect(maps.Keys(c.Headers)), limits: g.limits, wraps: g.wraps, beside: g.beside,
	}
	return client, nil
}

// Prepare implements rest.HTTPAuthPlugin.
func (g *guarded) Prepare(req *http.Request) error {
	g.mu.Lock()
	inner := g.inner
	g.mu.Unlock()
	return inner.Prepare(req)
}

// replace makes it stand for another form of the service.
func (g *guarded) replace(by *guarded) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.service, g.inner, g.raw = by.service, by.inner, by.raw
}

// Start makes it a plugin, which is how OPA finds it.
func (g *guarded) Start(context.Context) error { return nil }

// Stop does nothing.
func (g *guarded) Stop(context.Context) {}

// Reconfigure does nothing: OPA does not know its configuration.
func (g *guarded) Reconfigure(context.Context, any) {}

// guardServices rewrites the services of a configuration so that each is reached
// through a guard, and gives the guards by the names that stand there now.
func guardServices(raw json.RawMessage, limits Limits) (json.RawMessage, map[string]*guarded, error) {
	if len(raw) == 0 {
		return raw, nil, nil
	}
	services, err := listServices(raw)
	if err != nil {
		return nil, nil, err
	}
	guards := make(map[string]*guarded, len(services))
	for name, s := range services {
		g, err := newGuarded(s, limits)
		if err != nil {
			return nil, nil, fmt.Errorf("services.%s: %w", name, err)
		}
		guards[guardPrefix+name] = g
		s["credentials"] = map[string]any{"plugin": guardPrefix + name}
	}
	out, err := json.Marshal(services)
	return out, guards, err
}

// listServices reads both forms of the section: an object, and a list whose
// entries have names.
func listServices(raw json.RawMessage) (map[string]map[string]any, error) {
	var object map[string]map[string]any
	if err := util.Unmarshal(raw, &object); err == nil {
		return object, nil
	}
	var list []map[string]any
	if err := util.Unmarshal(raw, &list); err != nil {
		return nil, errors.New("services: neither an object nor a list of objects")
	}
	object = make(map[string]map[string]any, len(list))
	for i, s := range list {
		name, _ := s["name"].(string)
		if name == "" || object[name] != nil {
			return nil, fmt.Errorf("services[%d]: its name is missing or not unique", i)
		}
		object[name] = s
	}
	return object, nil
}

func newGuarded(service map[string]any, limits Limits) (*guarded, error) {
	b, err := json.Marshal(service)
	if err != nil {
		return nil, err
	}
	g := &guarded{limits: limits, raw: string(b)}
	if err := util.Unmarshal(b, &g.service); err != nil {
		return nil, err
	}
	if u, err := url.Parse(g.service.URL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("url %q: want http://host or https://host", g.service.URL)
	}
	if p := g.service.Credentials.Plugin; p != nil {
		return nil, fmt.Errorf("credentials.plugin %q: there are no such plugins here", *p)
	}
	g.inner, err = g.service.AuthPlugin(nil)
	return g, err
}

// discovered puts guards into each configuration that discovery brings.
type discovered struct {
	limits   Limits
	register func(name string, g *guarded)
	// boot are the services of the configuration file, found those of discovery.
	boot, found map[string]*guarded
}

// OnConfigDiscovery implements OPA's hooks.ConfigDiscoveryHook.
func (d *discovered) OnConfigDiscovery(_ context.Context, c *config.Config) (*config.Config, error) {
	raw, guards, err := guardServices(c.Services, d.limits)
	if err != nil {
		return nil, err
	}
	for name, g := range guards {
		switch have, known := d.found[name], d.boot[name]; {
		case known != nil && known.raw != g.raw:
			return nil, fmt.Errorf("services.%s: discovery cannot change a service of the configuration file", strings.TrimPrefix(name, guardPrefix))
		case known != nil:
		case have != nil:
			have.replace(g)
		default:
			d.found[name] = g
			d.register(name, g)
		}
	}
	out := *c
	out.Services = raw
	return &out, nil
}
