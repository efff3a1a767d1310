package ca

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/roots"
)

// asking starts an authority that has no key of the root, and gives the id under which it
// asks for it, and the authority when it was admitted.
func (m *mesh) asking(dir string) (string, <-chan *member) {
	m.t.Helper()
	started := make(chan *member, 1)
	go func() { started <- m.start(dir) }()
	time.Sleep(time.Second) // fake time
	docs, err := m.store.List(m.t.Context(), askingPrefix)
	if err != nil || len(docs) != 1 {
		m.t.Fatalf("%d ask, %v", len(docs), err)
	}
	select {
	case <-started:
		m.t.Fatal("it runs without the key")
	default:
	}
	return strings.TrimPrefix(docs[0].Key, askingPrefix), started
}

// A replica begins with an empty directory: it waits until an administrator of another
// one admits it by its id, and is one of them from then on. One that was away for too
// many rotations comes back in the same way.
func TestReplicaIsAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		a := m.member("")
		time.Sleep(time.Minute) // fake time
		id, started := m.asking(t.TempDir())
		there, asking, err := a.keeper.others.all(t.Context())
		if err != nil || len(there) != 1 || len(asking) != 1 || asking[0].ID != id {
			t.Errorf("known: %v and %v, %v", there, asking, err)
		}
		for _, wrong := range []string{"", "0123", a.keeper.others.announced()} {
			if err := a.keeper.others.admit(t.Context(), "admin uid=0", wrong); !errors.Is(err, roots.ErrRefused) {
				t.Errorf("%q: got %v", wrong, err)
			}
		}
		if err := a.keeper.others.admit(t.Context(), "admin uid=0", id); err != nil {
			t.Fatal(err)
		}
		b := <-started
		if got := b.signs(); got != a.state().Active {
			t.Errorf("it signs with %q", got)
		}
		if info, err := os.Stat(filepath.Join(b.dir, "roots", a.state().Active+".key")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the key: %v, %v", info, err)
		}
		time.Sleep(time.Minute) // fake time
		rotate := func(of *member) {
			t.Helper()
			if err := of.keeper.rotate(t.Context(), "admin uid=0", roots.How{Force: true}); err != nil {
				t.Fatal(err)
			}
			m.until(time.Minute, "the rotation is done", func() bool { return of.state().Rotation == nil })
			time.Sleep(time.Minute) // fake time
		}
		rotate(b)
		if a.signs() != b.state().Active || b.signs() != b.state().Active {
			t.Error("after a rotation one of them does not sign with the new root")
		}
		a.kill()
		rotate(b)
		rotate(b)
		id, started = m.asking(a.dir)
		if err := b.keeper.others.admit(t.Context(), "admin uid=0", id); err != nil {
			t.Fatal(err)
		}
		if got := (<-started).signs(); got != b.state().Active {
			t.Errorf("back again it signs with %q", got)
		}
	})
}

// late does not see the roots at first, as who starts together with others.
type late struct {
	ledger.Store
	seen atomic.Bool
}

func (l *late) Get(ctx context.Context, key string) (ledger.Document, error) {
	if key == rootsDocument && !l.seen.Swap(true) {
		return ledger.Document{}, ledger.ErrNoDocument
	}
	return l.Store.Get(ctx, key)
}

// Of several that start together over an empty ledger one makes the root; another one's
// is removed again, and it asks for the key.
func TestFirstStartTogether(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a, err := reopenWith(t, t.TempDir(), m.store, func(c *Config) { c.Ledger.Postgres = m.url })
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	c := DefaultConfig()
	c.TrustDomain, c.State, c.Ledger.Postgres = td.Name(), dir, m.url
	if _, err := open(ctx, c, &late{Store: m.store}, false, newMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("it does not wait: %v", err)
	}
	if !keyless(dir) {
		t.Error("it has a root of its own")
	}
	if docs, err := m.store.List(t.Context(), askingPrefix); err != nil || len(docs) != 1 {
		t.Errorf("%d ask, %v", len(docs), err)
	}
	if len(a.trusted().roots) != 1 {
		t.Error("there is another root")
	}
}

// An authority alone admits nobody, and does not start without its key.
func TestAloneNobodyIsAdmitted(t *testing.T) {
	var r *replicas
	if err := r.admit(t.Context(), "admin uid=0", "0123"); !errors.Is(err, roots.ErrRefused) {
		t.Errorf("got %v", err)
	}
	if there, asking, err := r.all(t.Context()); len(there)+len(asking) > 0 || err != nil {
		t.Errorf("got %v, %v, %v", there, asking, err)
	}
}
