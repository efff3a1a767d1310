package pilot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/pilot/fetch"
	"github.com/writ-mesh/writ/pilot/keysource"
	"github.com/writ-mesh/writ/pilot/listsource"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/revision"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/pilot/translate"
	"github.com/writ-mesh/writ/pilot/xds"
)

// Source is where configuration comes from.
type Source interface {
	// Read returns the configuration as it is now, whether it differs from what
	// was returned before, and everything that is wrong with it. Where something
	// is wrong, the mesh has what was last good. The mesh is nil if there is
	// nothing to go by; it must not be changed after it was returned.
	Read() (mesh *model.Mesh, changed bool, problems []meshdir.Problem)
	// Stamp differs if the files are not what they were when it was asked for before.
	Stamp() [sha256.Size]byte
	// Watch has a value soon after something may have changed and the files have
	// come to rest; it is closed when ctx ends.
	Watch(ctx context.Context) <-chan struct{}
	// Accepted says that every client has taken up a mesh that Read gave.
	Accepted(mesh *model.Mesh)
	// HoldBack says that a client refused what was made of objects of a mesh that
	// Read gave. It returns true if the next Read gives a mesh with what was
	// accepted before in their place.
	HoldBack(mesh *model.Mesh, objects []model.Ref, why string) bool
	// Contents gives the files that a mesh that Read gave was made of, by name, nil if
	// that is not known.
	Contents(mesh *model.Mesh) map[string][]byte
}

// Options are what a Pilot needs.
type Options struct {
	Source Source
	// Modified tells when the files were last written, from which the time to
	// live of a revision counts; nil: when Watch told.
	Modified func() time.Time
	// State is the directory for what survives a restart; empty for none.
	State   string
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Health  *service.Health
	// XDS overrides timings; the rest of it is set by New.
	XDS xds.Options
	// Lists says where the entries of AccessLists may come from, and KeySets where the
	// keys of token issuers may.
	Lists   listsource.Limits
	KeySets fetch.Guard
	// Authz says that proxies can ask authz.
	Authz bool
}

// Pilot reads, translates and distributes. Run drives it.
type Pilot struct {
	source   Source
	modified func() time.Time
	xds      *xds.Server
	log      *slog.Logger
	metrics  *metrics
	health   *service.Health
	// file keeps the tracker's state; empty for none.
	file string

	mu      sync.Mutex
	tracker *revision.Tracker
	saved   revision.Saved
	// current is being distributed; good was the last that everybody acknowledged.
	// Both nil before the first.
	current, good *compiled
	besides
	// revokedFile keeps what the authority revoked, empty for none.
	revokedFile string
	// tokensFeed has which tokens are revoked; tokensChanged has a value when that
	// changed.
	tokensFeed    *tokenFeed
	tokensChanged chan struct{}
	// authz says that proxies can ask authz, which is known before there is a mesh.
	authz bool
	// lists fetches entries of AccessLists.
	lists *listsource.Keeper
	// keySets fetches keys of token issuers; keyProblems are who names too many places.
	keySets     *keysource.Keeper
	keyProblems []meshdir.Problem
	problems    []meshdir.Problem
	// stamp is that of the files when they were read last.
	stamp [sha256.Size]byte
	// failed is why the files as they stand cannot be translated, or not for
	// everybody.
	failed []meshdir.Problem
	// changed is closed, and replaced, when the status changes.
	changed chan struct{}
}

// New returns a Pilot that has read its state and nothing else.
func newPilot(o Options) (*Pilot, error) {
	p := &Pilot{source: o.Source, modified: o.Modified, log: o.Log, authz: o.Authz, health: o.Health, metrics: newMetrics(o.Metrics), changed: make(chan struct{})}
	if o.State != "" {
		p.file = filepath.Join(o.State, "revision.json")
		saved, err := revision.Load(p.file)
		var corrupt *revision.CorruptError
		if errors.As(err, &corrupt) {
			o.Log.Warn("state file is damaged", slog.Any("error", err))
		} else if err != nil {
			return nil, err
		}
		p.saved = saved
	}
	p.openRevoked(o.State)
	if err := p.openTokens(o.State, time.Now()); err != nil {
		return nil, err
	}
	p.openLists(o)
	p.openKeys(o)
	p.tracker = revision.New(p.saved)
	o.XDS.Identify, o.XDS.Log, o.XDS.Observer = identify, o.Log, p.metrics
	o.XDS.Old = func(c xds.Client) bool { return c.Envoy && translate.OlderEnvoy(c.Version) }
	o.XDS.Older, o.XDS.Between, o.XDS.Served = translate.ForOlderEnvoys, security.BothFilters, security.RoutesServed
	o.XDS.BetweenEndpoints, o.XDS.NamedAfterListener = security.BothEndpoints, translate.NamedAfterListener
	p.xds = xds.New(o.XDS)
	p.health.Register("configuration")
	return p, nil
}

// Run reads and distributes until ctx ends.
func (p *Pilot) Run(ctx context.Context) error {
	defer p.xds.Stop()
	watch := p.source.Watch(ctx)
	p.read(time.Now())
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-watch:
			if !ok {
				return nil
			}
			p.read(p.written(time.Now()))
		case <-p.lists.Changed():
			p.relist()
		case <-p.keySets.Changed():
			p.rekey()
		case <-p.xds.Ready():
			if p.handle(p.xds.Events()) {
				p.read(time.Now())
			}
		}
	}
}

// written is when the change happened that was told of now: what the files say,
// if that can be true.
func (p *Pilot) written(now time.Time) time.Time {
	if p.modified == nil {
		return now
	}
	if t := p.modified(); t.Before(now) && now.Sub(t) < time.Minute {
		return t
	}
	return now
}

// read takes what the files say now and distributes it if it is new.
func (p *Pilot) read(written time.Time) {
	stamp := p.source.Stamp()
	mesh, changed, problems := p.source.Read()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problems, p.stamp = problems, stamp
	if mesh == nil {
		p.health.Set("configuration", errors.New("there is no configuration that can be used yet; see the problems in writ status"))
	} else if changed || p.current == nil {
		p.setLists(mesh)
		p.setKeys(mesh)
		p.compile(mesh, written)
	}
	p.metrics.setProblems(p.allProblems())
	p.notify()
}

func (p *Pilot) compile(mesh *model.Mesh, written time.Time) {
	start := time.Now()
	c, err := compile(mesh, p.besides, p.builder(), p.current)
	p.metrics.since(p.metrics.compile, start)
	if err != nil {
		p.log.Error("the configuration cannot be translated; the last good one stays", slog.Any("error", err))
		p.failed = []meshdir.Problem{{Message: "cannot be translated: " + err.Error(), Severity: meshdir.Error}}
		if p.current == nil {
			p.health.Set("configuration", err)
		}
		return
	}
	p.failed = nil
	for _, why := range c.failed {
		p.log.Error("a part of the configuration cannot be translated", slog.Any("error", why))
		p.failed = append(p.failed, meshdir.Problem{Message: why, Severity: meshdir.Error})
	}
	now := time.Now()
	rev, publish := p.tracker.Propose(c.snapshot.Hash, written, now)
	if !publish {
		p.save()
		return
	}
	c.snapshot.Revision = rev.Number
	p.current = c
	p.publish()
	p.log.Info("new revision", slog.Any("revision", rev.Number), slog.Any("proxies", len(mesh.Proxies)), slog.Any("compile", now.Sub(start)))
	// After publishing, because the disk may take longer than a change may; a
	// crash in between at worst gives the number to two contents.
	p.save()
	p.tracker.Expect(len(mesh.Proxies) > 0, now)
	p.becomeLive(now)
	p.health.Set("configuration", nil)
}

// builder shares what clients have now.
func (p *Pilot) builder() *xds.Builder {
	var earlier []*xds.Snapshot
	for _, c := range []*compiled{p.good, p.current} {
		if c != nil {
			earlier = append(earlier, c.snapshot)
		}
	}
	b := xds.NewBuilder(earlier...)
	for _, c := range p.xds.Adopted() {
		b.Learn(c)
	}
	return b
}

func (p *Pilot) publish() {
	p.metrics.revision.Set(float64(p.current.snapshot.Revision))
	p.xds.Publish(p.current.snapshot)
}

// becomeLive takes note if the revision being distributed has gone live.
func (p *Pilot) becomeLive(now time.Time) {
	r, ok := p.tracker.Serving()
	if !ok || r.State != revision.Live || p.good == p.current {
		return
	}
	p.good = p.current
	p.source.Accepted(p.good.mesh)
	p.metrics.live.Set(float64(r.Number))
	p.metrics.changeToAck.Observe(r.TimeToLive.Seconds())
	p.log.Info("revision is live", slog.Any("revision", r.Number), slog.Any("time_to_live", r.TimeToLive), slog.Any("at", now))
}

func (p *Pilot) save() {
	s := p.tracker.Saved()
	if p.file == "" || s == p.saved {
		return
	}
	if err := revision.Save(p.file, s); err != nil {
		p.log.Error("the number of the revision is not saved; after a restart it may be given again", slog.Any("error", err))
		return
	}
	p.saved = s
}

// handle follows what clients did. It returns true if the files are to be read
// again, because something of them was refused and is held back now.
func (p *Pilot) handle(events []xds.Event) (again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var wanted []xds.Event
	now := time.Now()
	for _, e := range events {
		switch e.Kind {
		case xds.Connected:
			p.tracker.Connected(e.Session)
			p.metrics.clients.WithLabelValues(string(e.Client.Kind)).Inc()
			p.log.Info("client connected", slog.Any("client", e.Client.ID), slog.Any("version", e.Client.Version))
		case xds.Disconnected:
			p.tracker.Disconnected(e.Session, now)
			p.metrics.clients.WithLabelValues(string(e.Client.Kind)).Dec()
			p.log.Info("client disconnected", slog.Any("client", e.Client.ID))
			p.forget(e)
		case xds.Acked:
			p.tracker.Acked(e.Session, e.Revision, now)
		case xds.Refused:
			again = p.refused(e) || again
		case xds.Wanted:
			wanted = append(wanted, e)
		}
		p.becomeLive(now)
	}
	p.adopt(wanted)
	p.notify()
	return again
}

// refused takes a revision back that a client does not accept, and has the
// objects at fault held back, so that later changes of others get through.
func (p *Pilot) refused(e xds.Event) (heldBack bool) {
	var objects []model.Ref
	why := revision.Rejection{Client: e.Client.ID, TypeURL: e.TypeURL, Detail: e.Detail}
	if p.current != nil && e.Revision == p.current.snapshot.Revision {
		good := p.good
		if good == p.current {
			good = nil
		}
		objects, why.Objects = blame(e, p.current, good)
	} else {
		_, why.Objects = blame(e, nil, nil)
	}
	p.log.Error("a client refused its configuration", slog.Any("client", e.Client.ID), slog.Any("revision", e.Revision), slog.Any("type", shortType(e.TypeURL)), slog.Any("detail", e.Detail), slog.Any("objects", why.Objects))
	back, ok := p.tracker.Refused(e.Revision, why)
	if len(objects) > 0 && p.current != p.good {
		heldBack = p.source.HoldBack(p.current.mesh, objects, fmt.Sprintf("%s refused it: %s", e.Client.ID, e.Detail))
	}
	if !ok {
		return heldBack
	}
	p.metrics.rejected.Inc()
	p.log.Warn("revision rejected, the last good one is distributed again", slog.Any("rejected", e.Revision), slog.Any("serving", back.Number))
	p.current = p.good
	p.publish()
	if !p.current.same(p.besides) {
		// The good one is older than what was revoked since.
		p.compile(p.current.mesh, time.Now())
	}
	return heldBack
}

// adopt translates for proxies that the mesh does not place.
func (p *Pilot) adopt(events []xds.Event) {
	c := p.current
	if c == nil {
		return
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, e := range events {
		g.Go(func() error {
			config, err := c.dynamic(e)
			if err != nil {
				p.log.Error("a proxy gets no configuration", slog.Any("client", e.Client.ID), slog.Any("error", err))
				return nil
			}
			p.xds.Adopt(e.Client.ID, config, c.snapshot.Revision)
			return nil
		})
	}
	_ = g.Wait() // the functions return no errors
}

func (c *compiled) dynamic(e xds.Event) (*xds.Config, error) {
	proxy, err := proxyOf(e.Metadata)
	if err != nil {
		return nil, fmt.Errorf("node metadata: %w", err)
	}
	return c.config(withPorts(proxy, c.offered()))
}

// forget lets go of what was made for dynamic proxies when the last has gone.
func (p *Pilot) forget(e xds.Event) {
	if e.Client.Dynamic && p.current != nil && len(p.xds.Adopted()) == 0 {
		p.current.sharing = &sharing{builder: xds.NewBuilder(p.current.snapshot)}
	}
}

// notify tells who watches the status.
func (p *Pilot) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// takeUp changes what counts besides the files, puts it into force and says whether
// anything changed. p.mu is held.
func (p *Pilot) takeUp(change func()) bool {
	before := p.besides
	change()
	if before.same(p.besides) {
		return false
	}
	if p.current != nil {
		p.compile(p.current.mesh, time.Now())
	}
	return true
}

// allProblems is what is wrong with the files as they stand.
func (p *Pilot) allProblems() []meshdir.Problem {
	return slices.Concat(p.failed, p.problems, p.listProblems(), p.keyProblems)
}
