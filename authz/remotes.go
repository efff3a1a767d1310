package authz

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-mesh/writ/authz/bundle"
	"github.com/writ-mesh/writ/authz/bundlestatus"
	"github.com/writ-mesh/writ/authz/rego"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// remotes follows the bundles of RegoPolicies that are elsewhere.
type remotes struct {
	// credentials is the folder with a folder for each host of bundles; empty for none.
	credentials string
	// ctx ends with the service.
	ctx     context.Context //nolint:containedctx // each remote lives from one configuration to another
	folder  string
	options rego.Options
	ahead   bundle.Ahead
	metrics *bundleMetrics
	log     *slog.Logger

	wg sync.WaitGroup
	// running are the remotes by policy. The owner, policies, locks.
	running map[string]*remote

	mu sync.Mutex
	// problems are what `writ status` is told, by policy.
	problems map[string]bundlestatus.Problem
	// state is the folder for that, empty for none.
	state string
}

// remote is one bundle.
type remote struct {
	manager     *bundle.Manager
	fingerprint [sha256.Size]byte
	cancel      context.CancelFunc
	newest      atomic.Pointer[bundle.Snapshot]
	activated   atomic.Pointer[time.Time]
}

// since is when what is in force was put in force, zero if nothing is.
func (x *remote) since() time.Time {
	if t := x.activated.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

func newRemotes(ctx context.Context, state, credentials string, o rego.Options, ahead bundle.Ahead, m *bundleMetrics, log *slog.Logger) *remotes {
	r := &remotes{ctx: ctx, credentials: credentials, options: o, ahead: ahead, metrics: m, log: log, running: make(map[string]*remote), problems: make(map[string]bundlestatus.Problem), state: state}
	if state != "" {
		r.folder = filepath.Join(state, "bundles")
		r.tell("", nil) // those of before are not ours
	}
	return r
}

// tell changes what is known to be wrong with a policy's bundle.
func (r *remotes) tell(name string, p *bundlestatus.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p != nil {
		r.problems[name] = *p
	} else {
		delete(r.problems, name)
	}
	if r.state == "" {
		return
	}
	list := make([]bundlestatus.Problem, 0, len(r.problems))
	for _, name := range slices.Sorted(maps.Keys(r.problems)) {
		list = append(list, r.problems[name])
	}
	if err := bundlestatus.Write(r.state, list); err != nil {
		r.log.Warn("what is wrong with bundles was not written down", slog.Any("error", err))
	}
}

// close waits for what ended with ctx.
func (r *remotes) close() {
	for _, x := range r.running {
		x.cancel()
	}
	r.wg.Wait()
}

// isRemote says that a policy's bundle is not on this machine.
func isRemote(p *configpb.RegoPolicy) bool {
	return p.GetBundle() != nil && !strings.HasPrefix(p.GetBundle().GetUrl(), "file:")
}

// prepare makes the remote of a policy, or finds the one that runs. It asks for
// nothing yet.
func (r *remotes) prepare(name string, fp [sha256.Size]byte, p *configpb.RegoPolicy, swapped func(*remote, *bundle.Snapshot)) (*remote, error) {
	if have := r.running[name]; have != nil && have.fingerprint == fp {
		return have, nil
	}
	folder := ""
	if r.folder != "" {
		sum := sha256.Sum256([]byte(name + "\x00" + p.GetBundle().GetUrl()))
		folder = filepath.Join(r.folder, hex.EncodeToString(sum[:16]))
	}
	x := &remote{fingerprint: fp}
	log := r.log.With(slog.String("policy", name))
	signing := p.GetBundle().GetSigning()
	var err error
	x.manager, err = bundle.NewRemote(r.ctx, bundle.RemoteOptions{
		URL: p.GetBundle().GetUrl(), Refresh: p.GetBundle().GetRefresh().AsDuration(), Query: p.GetQuery(),
		Key: signing.GetKey(), Algorithm: signing.GetAlgorithm(), Scope: signing.GetScope(),
		Credentials: r.credentialsFor(p.GetBundle()),
		Folder:      folder, Rego: r.options, Log: log, Ahead: r.ahead,
		Swapped: func(s *bundle.Snapshot) {
			x.newest.Store(s)
			now := time.Now()
			x.activated.Store(&now)
			swapped(x, s)
		},
		Report: func(report bundle.Report) {
			report.Name = name
			if report.Err == nil {
				r.tell(name, nil)
			} else {
				r.tell(name, &bundlestatus.Problem{Policy: name, Source: p.GetSource(), Reason: report.Err.Error(), Since: x.since()})
			}
			if report.Err != nil && report.Attempted {
				log.Warn("a bundle cannot be used; the last good one stays", slog.Any("error", report.Err))
			}
			r.metrics.report([]bundle.Report{report})
		},
	})
	return x, err
}

// credentialsFor are what a bundle's server is shown: files in the folder of its host,
// so that who writes a policy can send them nowhere else.
func (r *remotes) credentialsFor(b *configpb.Bundle) bundle.Credentials {
	c := b.GetCredentials()
	out := bundle.Credentials{
		TokenFile: c.GetTokenFile(), CertificateFile: c.GetCertificateFile(), KeyFile: c.GetKeyFile(),
		ClientFile: c.GetClientFile(), Scopes: c.GetScopes(), CAFile: c.GetCaFile(),
	}
	if u, err := url.Parse(b.GetUrl()); err == nil && r.credentials != "" && u.Host != "." && filepath.IsLocal(u.Host) && filepath.Base(u.Host) == u.Host {
		out.Folder = filepath.Join(r.credentials, u.Host)
	}
	return out
}

// follow makes these remotes those that run.
func (r *remotes) follow(next map[string]*remote) {
	for name, x := range r.running {
		if next[name] != x {
			x.cancel()
		}
		if next[name] == nil {
			r.metrics.forget(name)
			r.tell(name, nil)
		}
	}
	for name, x := range next {
		if r.running[name] == x {
			continue
		}
		ctx, cancel := context.WithCancel(r.ctx)
		x.cancel = cancel
		r.wg.Go(func() {
			if err := x.manager.Run(ctx, func(error) {}); err != nil && ctx.Err() == nil {
				r.log.Error("a bundle is not followed any more", slog.String("policy", name), slog.Any("error", err))
			}
		})
	}
	r.running = next
}

// revisions are those of the bundles in force, for the revision of the whole.
func (r *remotes) revisions() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(r.running)) {
		if s := r.running[name].newest.Load(); s != nil {
			out = append(out, name+"\x00"+fmt.Sprint(s.Revisions))
		}
	}
	return out
}

// waiting is what decides before a policy's bundle has come for the first time.
func waiting(ctx context.Context) (*rego.Program, error) {
	const module = "package writ.waiting\ndecision := {\"allowed\": false, \"reason\": \"the policy's bundle has not been loaded yet\"}\n"
	return rego.Compile(ctx, rego.Source{Modules: map[string]string{"waiting.rego": module}}, "data.writ.waiting.decision", rego.Options{})
}
