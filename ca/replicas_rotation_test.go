package ca

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/ca/roots"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// mortal is one process's way to a store, which ends with the process.
type mortal struct {
	*ledgertest.Memory
	dead atomic.Bool
}

func (m *mortal) Commit(ctx context.Context, c ledger.Change) (uint64, error) {
	if m.dead.Load() {
		return 0, errDied
	}
	return m.Memory.Commit(ctx, c)
}

// member is one authority of several over one ledger, without its listeners.
type member struct {
	*Authority
	t    *testing.T
	dir  string
	kill func()
}

// mesh is several authorities over one ledger, for a bubble of fake time.
type mesh struct {
	t     *testing.T
	store *ledgertest.Memory
	url   string
}

func newMesh(t *testing.T) *mesh {
	store := ledgertest.NewMemory()
	t.Cleanup(func() { _ = store.Close() })
	return &mesh{t: t, store: store, url: "postgres://writ@localhost/stands-for-a-shared-ledger"}
}

// member starts one. from is a directory whose files it begins with; empty for none.
func (m *mesh) member(from string) *member {
	m.t.Helper()
	dir := m.t.TempDir()
	if from != "" {
		if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
			m.t.Fatal(err)
		}
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				err = os.Chmod(path, 0o600)
			}
			return err
		}); err != nil {
			m.t.Fatal(err)
		}
	}
	return m.start(dir)
}

// start runs one in a directory.
func (m *mesh) start(dir string) *member {
	m.t.Helper()
	way := &mortal{Memory: m.store}
	a, err := reopenWith(m.t, dir, way, func(c *Config) { c.Ledger.Postgres = m.url })
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.t.Context())
	var tasks sync.WaitGroup
	stop := func() {
		cancel()
		tasks.Wait()
	}
	m.t.Cleanup(stop)
	for _, task := range []func(context.Context) error{a.keeper.run, a.keeper.adoptOthers, a.keeper.others.run, a.keeper.others.follow, a.keeper.others.followAnnouncements} {
		tasks.Go(func() { _ = task(ctx) })
	}
	synctest.Wait()
	return &member{a, m.t, dir, func() { way.dead.Store(true); stop() }}
}

// signs issues something and tells under which root; empty if it cannot.
func (a *member) signs() string {
	id := spiffeid.RequireFromPath(td, "/writ/ca")
	cert, err := a.issue(a.t.Context(), order{kind: kindSelf, id: id, requester: id.String(), csr: csr.Request{PublicKey: newKey(a.t).Public()}})
	if err != nil {
		return ""
	}
	return issuerOf(cert)
}

// until waits for something for a time of the bubble.
func (m *mesh) until(limit time.Duration, what string, f func() bool) time.Duration {
	m.t.Helper()
	began := time.Now()
	for !f() {
		if time.Since(began) > limit {
			m.t.Fatalf("after %s: not so: %s", limit, what)
		}
		time.Sleep(100 * time.Millisecond) // fake time
	}
	return time.Since(began)
}

func (a *member) state() roots.State { return a.trusted().state }

// sequence is that of the bundle which it hands out.
func (a *member) sequence() uint64 { return a.bundleProto(a.trusted()).GetSequence() }

// gate is who holds up what, as this authority sees it.
func (a *member) gate() string {
	_ = a.keeper.look(a.t.Context())
	st, _ := a.keeper.tell()
	return gateOf(st)
}

// holder makes the certificate of a node and begins to hear it at an authority.
func (a *member) holder(id string) func(sequence uint64, authority string) {
	a.t.Helper()
	node := spiffeid.RequireFromString(id)
	if _, err := a.issue(a.t.Context(), order{kind: kindRenew, id: node, requester: id, csr: csr.Request{PublicKey: newKey(a.t).Public()}}); err != nil {
		a.t.Fatal(err)
	}
	report := a.keeper.watch(node)
	return func(sequence uint64, authority string) {
		a.keeper.heard(report, &capb.WatchBundleRequest{Acknowledged: sequence, Authorities: []string{authority}})
	}
}

// rotationSteps are those in the ledger.
func (m *mesh) rotationSteps() (out []string) {
	for _, e := range ledgertest.All(m.t, m.store) {
		if e.Kind == ledger.Rotated && e.Detail["step"] != "jwt keys" {
			out = append(out, e.Detail["step"])
		}
	}
	return out
}

// Whichever of three authorities dies, at whichever step of a rotation, the others take
// it to its end, each step once, and the dead one signs with the new root when it is back.
func TestKilledReplicaStopsNoRotation(t *testing.T) {
	for _, step := range []roots.Step{roots.Distributing, roots.Draining} {
		for _, who := range []string{"the one that began", "another"} {
			t.Run(fmt.Sprintf("%s, %s", step, who), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newMesh(t)
					a := m.member("")
					b, c := m.member(a.dir), m.member(a.dir)
					time.Sleep(time.Minute) // fake time
					old := a.state().Active
					// A holder that does not acknowledge keeps each gate shut.
					says := b.holder(nodeID)
					if err := a.keeper.rotate(t.Context(), "admin uid=0", roots.How{}); err != nil {
						t.Fatal(err)
					}
					fresh := a.state().Rotation.New
					if step == roots.Draining {
						time.Sleep(time.Second) // fake time
						says(b.sequence(), old)
						m.until(time.Minute, "the new root signs", func() bool { return b.state().Active == fresh })
					}
					dead := map[string]*member{"the one that began": a, "another": c}[who]
					live := slices.DeleteFunc([]*member{a, b, c}, func(m *member) bool { return m == dead })
					dead.kill()
					time.Sleep(life) // fake time
					if got := b.state().Rotation; got == nil || got.Step != step {
						t.Fatalf("at %+v", got)
					}
					says(b.sequence(), old)
					m.until(time.Minute, "the new root signs", func() bool { return b.state().Active == fresh })
					says(b.sequence(), fresh)
					m.until(3*time.Hour, "the rotation is done", func() bool { return b.state().Rotation == nil })
					time.Sleep(time.Second) // fake time
					for _, one := range append(live, m.start(dead.dir)) {
						if got := one.signs(); got != fresh {
							t.Errorf("one signs with %q, want %s", got, fresh)
						}
					}
					if got, want := m.rotationSteps(), []string{"first", "prepare", "activate", "retire"}; !slices.Equal(got, want) {
						t.Errorf("steps %v, want %v", got, want)
					}
				})
			})
		}
	}
}

// The new root does not sign before every authority that lives could sign with it, also
// one that has started meanwhile; whoever cannot is named.
func TestGateWaitsForTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		a := m.member("")
		b := m.member(a.dir)
		time.Sleep(time.Minute) // fake time
		old := a.state().Active
		// Something is where the key has to go.
		if err := os.WriteFile(filepath.Join(b.dir, "roots"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := a.keeper.rotate(t.Context(), "admin uid=0", roots.How{}); err != nil {
			t.Fatal(err)
		}
		late := m.member(a.dir)
		time.Sleep(time.Minute) // fake time
		if got := a.gate(); !strings.Contains(got, "cannot sign with the new root") || strings.Count(got, ";") > 0 || a.signs() != old {
			t.Errorf("gate: %s", got)
		}
		if err := os.Remove(filepath.Join(b.dir, "roots")); err != nil {
			t.Fatal(err)
		}
		m.until(time.Minute, "the new root signs", func() bool { return a.state().Active != old })
		time.Sleep(time.Second) // fake time
		for _, one := range []*member{a, b, late} {
			if got := one.signs(); got != a.state().Active {
				t.Errorf("one signs with %q", got)
			}
		}
	})
}

// An authority that has just started and has not heard of the others opens no gate.
func TestGateWaitsUntilTheOthersAreKnown(t *testing.T) {
	now := time.Now()
	r := &replicas{host: "h", heard: map[string]*session{}}
	in := &trust{state: roots.State{Rotation: &roots.Rotation{Step: roots.Draining}}}
	holds := func() int {
		var f roots.Facts
		r.tell(in, &f, now)
		return len(roots.Gate(in.state, f, now))
	}
	if holds() == 0 {
		t.Error("before anything was heard the gate is open")
	}
	r.known = map[string]json.RawMessage{}
	if holds() == 0 {
		t.Error("when only announcements were heard the gate is open")
	}
	r.hear(ledger.Update{}, true)
	if n := holds(); n != 0 {
		t.Errorf("there is nobody else, and %d hold the gate", n)
	}
}

// Who has a copy of another's files takes nothing from it: both are handed the next key.
func TestCopiedReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		a := m.member("")
		time.Sleep(time.Minute) // fake time, in which a is announced
		b := m.member(a.dir)
		time.Sleep(time.Minute) // fake time
		docs, err := m.store.List(t.Context(), announcedPrefix)
		if err != nil || len(docs) != 2 {
			t.Fatalf("%d are announced, %v", len(docs), err)
		}
		if err := b.keeper.rotate(t.Context(), "admin uid=0", roots.How{}); err != nil {
			t.Fatal(err)
		}
		fresh := b.state().Rotation.New
		m.until(time.Minute, "the new root signs", func() bool { return a.signs() == fresh && b.signs() == fresh })
	})
}

// Nothing is told while no root is replaced; during a rotation that stands still one
// change in 15 seconds, and each authority is announced once.
func TestReplicasAreQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		a := m.member("")
		b := m.member(a.dir)
		for n := range 100 {
			b.holder(fmt.Sprintf("spiffe://example.org/writ/node/n%d", n))
		}
		time.Sleep(time.Minute) // fake time
		size := func() uint64 {
			h, err := m.store.Head(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return h.Size
		}
		before := size()
		time.Sleep(30 * time.Minute) // fake time
		if n := size() - before; n != 0 {
			t.Errorf("%d changes in half an hour of nothing", n)
		}
		if err := a.keeper.rotate(t.Context(), "admin uid=0", roots.How{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // fake time
		before = size()
		time.Sleep(10 * time.Minute) // fake time
		if n := size() - before; n < 70 || n > 84 {
			t.Errorf("%d changes in ten minutes of a rotation that stands still, want one in 15 s of each of two", n)
		}
		kinds := make(map[ledger.Kind]int)
		for _, e := range ledgertest.All(t, m.store) {
			kinds[e.Kind]++
		}
		if kinds[ledger.Announced] != 3 { // the first one twice, of whose files the second one had a copy
			t.Errorf("entries: %v", maps.Collect(maps.All(kinds)))
		}
	})
}

// After the theft of a root's key the next one goes to the replicas that were named, and
// to nobody whom the thief announced.
func TestCompromisedRootIsHandedToThoseNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		a := m.member("")
		b := m.member(a.dir)
		time.Sleep(time.Minute) // fake time
		thief := m.member(a.dir)
		time.Sleep(time.Minute) // fake time
		how := roots.How{Compromised: true}
		err := a.keeper.rotate(t.Context(), "admin uid=0", how)
		if err == nil || !strings.Contains(err.Error(), b.keeper.others.announced()) || !strings.Contains(err.Error(), thief.keeper.others.announced()) {
			t.Fatalf("it is not asked who is to have the key: %v", err)
		}
		if err := a.keeper.rotate(t.Context(), "admin uid=0", roots.How{Manual: true}); err != nil {
			t.Fatal(err)
		}
		if err := a.keeper.rotate(t.Context(), "admin uid=0", how); err == nil || !strings.Contains(err.Error(), "writ roots abort") {
			t.Errorf("a root whose key the thief has takes over: %v", err)
		}
		if err := a.keeper.abort(t.Context(), "admin uid=0"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // fake time
		if err := a.keeper.rotateTo(t.Context(), "admin uid=0", how, []string{"0123"}); err == nil {
			t.Error("a replica that is not there was taken")
		}
		if err := a.keeper.rotateTo(t.Context(), "admin uid=0", how, []string{b.keeper.others.announced()}); err != nil {
			t.Fatal(err)
		}
		m.until(time.Minute, "the old root is dropped", func() bool { return a.state().Rotation == nil })
		time.Sleep(time.Minute) // fake time
		fresh := a.state().Active
		if a.signs() != fresh || b.signs() != fresh || thief.signs() != "" {
			t.Errorf("they sign with %q, %q and %q", a.signs(), b.signs(), thief.signs())
		}
		if found, err := filepath.Glob(filepath.Join(thief.dir, "roots", "*")); err != nil || len(found) > 0 {
			t.Errorf("the thief has %v, %v", found, err)
		}
	})
}
