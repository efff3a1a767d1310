package pilot

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/writ-mesh/writ/internal/regoform"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/pilot/fetch"
	"github.com/writ-mesh/writ/pilot/listsource"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

// CompileRego says whether a Rego module compiles and answers the query; name is
// "<namespace>/<name>" of its RegoPolicy.
type CompileRego func(name, module, query string) error

// SplitRego says what is known of a RegoPolicy without evaluating it, for Envoys to
// decide; nil leaves all of it to authz.
type SplitRego func(name, module, query string) *regoform.Policy

// Runner gives the whole service: it reads c.Mesh and serves what c says until ctx
// ends. compileRego lets it refuse Rego with file and line; nil leaves that to
// authz, whose refusal takes the whole revision back.
func Runner(compileRego CompileRego, splitRego SplitRego) func(ctx context.Context, c Config, rt *service.Runtime) error {
	return func(ctx context.Context, c Config, rt *service.Runtime) error {
		return run(ctx, c, rt, compileRego, splitRego)
	}
}

func run(ctx context.Context, c Config, rt *service.Runtime, compileRego CompileRego, splitRego SplitRego) error {
	if c.State != "" {
		if err := os.MkdirAll(c.State, 0o700); err != nil {
			return fmt.Errorf("state: %w", err)
		}
	}
	reserved, err := c.reserved()
	if err != nil {
		return err
	}
	source := meshdir.Options{Dir: c.Mesh, InstancesFile: c.Instances, Reserved: reserved, Deciders: c.Deciders.Model(), CompileRego: compileRego, SplitRego: splitRego}
	if c.State != "" {
		source.LastGood = filepath.Join(c.State, "last-good.json")
	}
	p, err := newPilot(Options{
		Source:   meshdir.NewReader(source),
		Modified: func() time.Time { return newest(c.Mesh, c.Instances) },
		State:    c.State, Log: rt.Log, Metrics: rt.Metrics, Health: rt.Health,
		Lists:   listsource.Limits{Guard: fetch.Guard{URLs: c.ListURLs, Setting: "list_urls", AddressProblem: source.AddressProblem}, ReadFile: source.ReadNamed},
		KeySets: fetch.Guard{URLs: c.KeySetURLs, Setting: "key_set_urls", AddressProblem: source.AddressProblem},
		Authz:   c.Deciders.Authz != "",
	})
	if err != nil {
		return err
	}
	tasks := []func(context.Context) error{p.Run, p.followTokens, p.lists.Run, p.keySets.Run}
	if c.Listen != "" {
		tasks = append(tasks, func(ctx context.Context) error { return p.ServeADS(ctx, c.Listen, c.Credential, rt) })
	}
	if c.Plaintext != "" {
		tasks = append(tasks, func(ctx context.Context) error { return p.ServePlaintext(ctx, c.Plaintext, rt) })
	}
	if c.Admin != "" {
		tasks = append(tasks, func(ctx context.Context) error { return p.ServeAdmin(ctx, c.Admin, rt) })
	}
	return service.RunTasks(ctx, tasks...)
}

// newest is when the newest of the configuration files was written; the zero time if none can be seen.
func newest(dir, instances string) time.Time {
	var t time.Time
	see := func(info fs.FileInfo) {
		if info.ModTime().After(t) {
			t = info.ModTime()
		}
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil //nolint:nilerr // what cannot be seen does not count
		case d.IsDir() && path != dir && d.Name()[0] == '.':
			return fs.SkipDir
		}
		if info, err := d.Info(); err == nil {
			see(info)
		}
		return nil
	})
	if info, err := os.Stat(instances); err == nil {
		see(info)
	}
	return t
}
