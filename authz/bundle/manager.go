package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/hooks"
	"github.com/open-policy-agent/opa/v1/loader"
	opametrics "github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/plugins"
	bundleplugin "github.com/open-policy-agent/opa/v1/plugins/bundle"
	"github.com/open-policy-agent/opa/v1/plugins/discovery"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/authz/basedoc"
	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/rego"
)

// Options are what a Manager is made of.
type Options struct {
	// Config is OPA's configuration, in JSON.
	Config []byte
	// Plugin is the section under plugins that the caller reads itself.
	Plugin string
	// Read checks that section and gives the query to decide by, and what to call
	// once this is the section in force; nil for nothing. It is called again for
	// each configuration that discovery brings.
	Read func(section []byte) (query string, accept func(), err error)
	// ID names this process to servers; empty for a random one.
	ID string
	// Local is what is on this machine; nil for nothing. One manager can be prepared
	// with it.
	Local *Local
	// V0 reads Rego as OPA before 1.0.
	V0 bool
	// Limits bound what servers send; zero means defaultLimits.
	Limits Limits
	// Console takes what is configured to go to the console.
	Console io.Writer
	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Rego are the options that programs are made with.
	Rego rego.Options
	// OnlyBundles makes no snapshot before a bundle is in force.
	OnlyBundles bool
	// Rejected is called with why something that OPA activated cannot be used; nil
	// for none.
	Rejected func(error)
	// Ahead is called before each snapshot that takes another one's place; nil for none.
	Ahead Ahead
	// Swapped is called with each snapshot that takes another one's place, before
	// it does; nil for none.
	Swapped func(*Snapshot)
	// Report is called with the state of each bundle after each attempt to load
	// it; nil for none.
	Report func([]Report)

	// credentials are shown to all services, of which none has its own.
	credentials Credentials
}

// Ahead has what takes the place of another in a moment decide something first. What it
// gives is called once it has taken it.
type Ahead func(ctx context.Context, inForce, next *rego.Program) (replaced func())

// Snapshot is what decides from one activation to the next. It is immutable.
type Snapshot struct {
	Program *rego.Program
	// Revisions are those of the bundles in it, by name.
	Revisions map[string]string

	compiler *ast.Compiler
}

// Report is the state of a bundle.
type Report struct {
	Name string
	// Revision is the one in force, empty if none is.
	Revision string
	// Err says why the newest attempt failed; nil if it did not.
	Err error
	// Activated is when the revision in force was put in force.
	Activated time.Time
	// Attempted says that it is this bundle that was attempted now.
	Attempted bool
}

// Manager runs OPA's plugins. It is safe for concurrent use.
type Manager struct {
	options Options
	opa     *plugins.Manager
	store   *basedoc.Store
	current atomic.Pointer[Snapshot]
	// query is empty until the plugin's section is known.
	query atomic.Pointer[string]
	// dirty holds a token when OPA has activated something.
	dirty chan struct{}
	// configured is closed once the plugin's section is known.
	configured chan struct{}
	redactor   *decisionlog.Redactor
	// watched is the plugin whose bundles are reported.
	watched *bundleplugin.Plugin
	// arriving are the bundles that come wrapped, by name.
	arriving map[string]*arrival
	// discovers: the configuration is discovered, and changes.
	discovers bool
	// compiled is what was compiled last; nil for nothing. Who writes to the store has it.
	compiled *compiled
}

// NewManager checks a configuration and loads what is local. Nothing is asked
// over the network before Run.
func NewManager(ctx context.Context, o Options) (*Manager, error) {
	if o.Limits == (Limits{}) {
		o.Limits = defaultLimits()
	}
	rego.LimitBuiltins() // OPA evaluates as soon as it reads its configuration
	m := &Manager{options: o, dirty: make(chan struct{}, 1), configured: make(chan struct{}), redactor: decisionlog.NewRedactor(nil, nil, nil)}
	boot, err := m.bootConfig(o.Config)
	if err != nil {
		return nil, err
	}
	m.discovers = boot["discovery"] != nil
	if !m.discovers || discoversByHTTP(boot) {
		basedoc.Everywhere()
	}
	section, err := json.Marshal(boot["services"])
	if err != nil {
		return nil, err
	}
	services, guards, err := guardServices(orNothing(section), o.Limits)
	if err != nil {
		return nil, err
	}
	if guards != nil {
		boot["services"] = services
	}
	if o.credentials.shows() || o.credentials.CAFile != "" {
		for _, g := range guards {
			g.inner = &credentialed{Credentials: o.credentials}
		}
	}
	m.arrivals(boot, guards)
	raw, err := json.Marshal(boot)
	if err != nil {
		return nil, err
	}
	hook := &discovered{limits: o.Limits, boot: guards, found: make(map[string]*guarded)}
	if err := m.newOPA(raw, hook); err != nil {
		return nil, err
	}
	for name, g := range guards {
		m.registerGuard(name, g)
	}
	var again map[string]any
	if err := json.Unmarshal(raw, &again); err != nil {
		return nil, err
	}
	d, err := discovery.New(m.opa,
		discovery.Factories(map[string]plugins.Factory{o.Plugin: factory{m}}),
		discovery.Metrics(opametrics.New()),
		discovery.Hooks(hooks.New(hook)),
		discovery.BootConfig(again))
	if err != nil {
		m.opa.Stop(ctx)
		return nil, err
	}
	m.opa.Register(discovery.Name, d)
	return m, nil
}

// discoversByHTTP says that discovery has its bundle by HTTP and in no other way, as from a
// registry or from disk: OPA reads the data in it whatever basedoc.Everywhere changes.
func discoversByHTTP(boot map[string]any) bool {
	section, ok := boot["discovery"].(map[string]any)
	if kept, set := section["persist"]; !ok || set && kept != false {
		return false
	}
	raw, err := json.Marshal(boot["services"])
	if err != nil {
		return false
	}
	services, err := listServices(raw)
	if err != nil {
		return false
	}
	for _, s := range services { // one of them is discovery's, by rules of OPA's own
		if kind, set := s["type"]; set && kind != "" {
			return false
		}
	}
	return true
}

// orNothing is b, or nothing for JSON's null.
func orNothing(b []byte) json.RawMessage {
	if string(b) == "null" {
		return nil
	}
	return b
}

// bootConfig reads the configuration, and adds the plugin's section where nobody
// else will.
func (m *Manager) bootConfig(raw []byte) (map[string]any, error) {
	boot := make(map[string]any)
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &boot); err != nil {
			return nil, err
		}
	}
	if boot["discovery"] == nil {
		sections, _ := boot["plugins"].(map[string]any)
		if sections == nil {
			sections = make(map[string]any)
		}
		if sections[m.options.Plugin] == nil {
			sections[m.options.Plugin] = map[string]any{}
		}
		boot["plugins"] = sections
	}
	return boot, nil
}

func (m *Manager) newOPA(raw []byte, hook *discovered) error {
	version := ast.RegoV1
	if m.options.V0 {
		version = ast.RegoV0
	}
	local := m.options.Local
	if local == nil {
		local = &Local{files: &loader.Result{}}
	}
	m.store = basedoc.New()
	m.store.Fill(local.data)
	m.store.Around(m.activate)
	id := m.options.ID
	if id == "" {
		id = randomID()
	}
	var err error
	m.opa, err = plugins.New(raw, id, m.store,
		plugins.Logger(opaLogger{log: m.options.Log, arriving: m.arriving}),
		plugins.ConsoleLogger(newConsole(m.options.Console)),
		plugins.InitFiles(*local.files),
		plugins.InitBundles(local.bundles),
		plugins.WithParserOptions(ast.ParserOptions{RegoVersion: version}),
		plugins.WithPrometheusRegister(m.options.Metrics),
		plugins.WithHooks(hooks.New(hook)))
	if err != nil {
		return err
	}
	hook.register = m.registerGuard
	m.opa.RegisterCompilerTrigger(func(storage.Transaction) { m.wake() })
	m.opa.RegisterPluginStatusListener("writ", func(map[string]*plugins.Status) { m.wake() })
	return nil
}

// registerGuard makes a guard known to OPA, in whose reports it is a plugin that
// is in order.
func (m *Manager) registerGuard(name string, g *guarded) {
	m.opa.Register(name, g)
	m.opa.UpdatePluginStatus(name, &plugins.Status{State: plugins.StateOK})
}

// wake makes the loop look.
func (m *Manager) wake() {
	select {
	case m.dirty <- struct{}{}:
	default:
	}
}

// Configured waits until the plugin's section is known: at once, unless it comes
// by discovery.
func (m *Manager) Configured(ctx context.Context) error {
	select {
	case <-m.configured:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Current is what decides now; nil before there is anything.
func (m *Manager) Current() *Snapshot { return m.current.Load() }

// Prepare compiles what is local and makes it current.
func (m *Manager) Prepare(ctx context.Context) error {
	if err := m.opa.Init(ctx); err != nil {
		return rego.OneLine(err)
	}
	m.options.Local.release()
	if m.query.Load() == nil {
		return nil
	}
	return m.take(ctx)
}

// Run runs the plugins until ctx ends. state is called whenever it may have
// changed: with nil once everything that is configured is in force for the first
// time, before that with what is missing.
func (m *Manager) Run(ctx context.Context, state func(error)) error {
	m.watch()
	if err := m.wrapKept(); err != nil {
		m.options.Log.WarnContext(ctx, "a bundle that was kept on disk cannot be used", slog.Any("error", err))
	}
	if err := m.opa.Start(ctx); err != nil {
		return fmt.Errorf("opa plugins: %w", err)
	}
	defer m.stop(ctx)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.dirty:
		}
		m.watch()
		if m.query.Load() == nil {
			state(errors.New("the configuration has not been discovered yet"))
			continue
		}
		if err := m.take(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			m.options.Log.ErrorContext(ctx, "what OPA activated cannot be used; the last good policies stay", slog.Any("error", err))
			if m.options.Rejected != nil {
				m.options.Rejected(err)
			}
		}
		state(m.ready())
	}
}

// stop ends the plugins. What waits for a server is tried once more, but not for
// longer than stopTime.
func (m *Manager) stop(ctx context.Context) {
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	m.opa.Stop(bound)
}

// stopTime is what is left of the ten seconds that supervisors usually grant.
const stopTime = 5 * time.Second

// ready is nil once each plugin has been in order.
func (m *Manager) ready() error {
	if m.current.Load() == nil {
		return errors.New("no policy is in force yet")
	}
	for name, s := range m.opa.PluginStatus() {
		if s != nil && (s.State == plugins.StateNotReady || s.State == plugins.StateErr) {
			if p := bundleplugin.Lookup(m.opa); name == bundleplugin.Name && p != nil {
				return fmt.Errorf("bundles that are not in force yet: %s", strings.Join(p.NotActivated(), ", "))
			}
			return fmt.Errorf("%s: %s %s", name, s.State, s.Message)
		}
	}
	return nil
}

// watch follows the bundles' states, once there is a plugin that loads any.
func (m *Manager) watch() {
	p := bundleplugin.Lookup(m.opa)
	if p == nil || p == m.watched || m.options.Report == nil {
		return
	}
	m.watched = p
	last := make(map[string]time.Time)
	p.RegisterBulkListener("writ", func(all map[string]*bundleplugin.Status) {
		reports := make([]Report, 0, len(all))
		for name, s := range all {
			r := Report{Name: name, Revision: s.ActiveRevision, Activated: s.LastSuccessfulActivation, Attempted: !s.LastRequest.Equal(last[name])}
			last[name] = s.LastRequest
			if s.Code != "" {
				r.Err = statusError(s)
			}
			reports = append(reports, r)
		}
		m.options.Report(reports)
	})
}

func statusError(s *bundleplugin.Status) error {
	if len(s.Errors) > 0 {
		return rego.OneLine(errors.Join(s.Errors...))
	}
	return errors.New(strings.Join(strings.Fields(s.Message), " "))
}
