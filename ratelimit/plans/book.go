package plans

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
)

const (
	// defaultLookEvery is how often it is looked whether a table has changed: often enough
	// for a change to hold within a second, reading included.
	defaultLookEvery = 200 * time.Millisecond
	// defaultReadPause is between two times that a table of Redis is read as a whole.
	defaultReadPause = 2 * time.Second
)

// Options say where tables are.
type Options struct {
	// Folder has a file NAME.plans for each table; empty is none. It need not exist.
	Folder string
	// Redis has the tables called Tables; nil is none.
	Redis  *redisstore.Plans
	Tables []string
	// State is a folder where the tables of Redis are kept for a start without it; empty
	// keeps none. It is there, and nobody else writes into it.
	State string
	// MaxCallers bounds the callers of each table.
	MaxCallers int
	Now        func() time.Time
	Log        *slog.Logger
}

// Book has all tables. It is safe for concurrent use.
type Book struct {
	options Options
	folder  *folder

	lookEvery, readPause, keepEvery time.Duration

	mu      sync.Mutex
	handles map[string]*Handle
	named   map[string]bool // what policies name; nil before any have come
}

// New makes a book and reads the tables of the folder and those that were kept; what is
// wrong is logged and waited for, as are those of Redis.
func New(o Options) *Book {
	b := &Book{options: o, handles: map[string]*Handle{}, lookEvery: defaultLookEvery, readPause: defaultReadPause, keepEvery: defaultKeepEvery}
	if o.State != "" {
		b.restore()
	}
	if o.Folder != "" {
		b.folder = &folder{book: b, dir: o.Folder, seen: map[string]seen{}}
		b.folder.look()
	}
	return b
}

// Run follows the tables until ctx ends.
func (b *Book) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if b.folder != nil {
		g.Go(func() error { return every(ctx, b.lookEvery, b.folder.look) })
	}
	for _, name := range b.options.Tables {
		f := &follower{book: b, handle: b.follow(name), from: b.options.Redis}
		g.Go(func() error { return every(ctx, b.lookEvery, func() { f.look(ctx) }) })
		if b.options.State != "" {
			g.Go(func() error { return b.keep(ctx, f.handle) })
		}
	}
	g.Go(func() error { <-ctx.Done(); return ctx.Err() }) // with no tables at all, too
	err := g.Wait()
	if b.options.Redis != nil {
		err = errors.Join(err, b.options.Redis.Close())
	}
	return err
}

// every calls look at once, and again after each pause until ctx ends.
func every(ctx context.Context, pause time.Duration, look func()) error {
	look()
	return service.Every(ctx, pause, func(time.Time) { look() })
}

// Handle is a table by its name, whether it is there or not.
type Handle struct {
	name  string
	table atomic.Pointer[Table]
	// current is when the table was last known to be what its source has, in nanoseconds
	// since the epoch; 0 before it was read.
	current  atomic.Int64
	failures atomic.Uint64
	lookups  [byRefusal + 1]atomic.Uint64

	// problem is what was logged last; only who follows the table uses it.
	problem string
	// followed says that a file or Redis is looked at for it; the book's mutex guards it.
	followed bool
}

// Handle gives a policy the handle of a name, the same each time until Named forgets it.
func (b *Book) Handle(name string) *Handle {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.named != nil {
		b.named[name] = true
	}
	return b.handle(name)
}

func (b *Book) handle(name string) *Handle {
	h := b.handles[name]
	if h == nil {
		h = &Handle{name: name}
		b.handles[name] = h
	}
	return h
}

// follow gives whoever looks at a table its handle.
func (b *Book) follow(name string) *Handle {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.handle(name)
	h.followed = true
	return h
}

// Named says which tables the policies in force name. Others that are nowhere are
// forgotten, as are those whose file is gone. Policies must not be compiled meanwhile.
func (b *Book) Named(tables map[string]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.named = maps.Clone(tables)
	maps.DeleteFunc(b.handles, func(name string, h *Handle) bool { return !h.followed && !tables[name] })
}

// forget drops a table whose file is gone, unless a policy names it.
func (b *Book) forget(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.named == nil || b.named[name] {
		return false
	}
	delete(b.handles, name)
	return true
}

// Name is the table's.
func (h *Handle) Name() string { return h.name }

// Find gives a caller's number of a column, as Table.Find. While there is no table
// nothing is found.
func (h *Handle) Find(caller, column string) Found {
	var f Found
	if t := h.table.Load(); t != nil {
		f = t.Find(caller, column)
	}
	h.lookups[f.by].Add(1)
	return f
}

// put has a table hold from now on.
func (b *Book) put(h *Handle, t *Table) {
	h.table.Store(t)
	b.fine(h)
}

// fine notes that a table is what its source has.
func (b *Book) fine(h *Handle) {
	h.current.Store(b.options.Now().UnixNano())
	if h.problem != "" {
		h.problem = ""
		b.options.Log.Info("plans are well again", slog.String("table", h.name))
	}
}

// fail notes that a table could not be read, or not all of it.
func (b *Book) fail(h *Handle, err error) {
	h.failures.Add(1)
	if h.problem == err.Error() {
		return // said before
	}
	h.problem = err.Error()
	if h.table.Load() == nil {
		b.options.Log.Error("plans refused, the numbers of the policies hold", slog.String("table", h.name), slog.Any("error", err))
		return
	}
	b.options.Log.Error("plans refused, the last good ones stay", slog.String("table", h.name), slog.Any("error", err))
}

// all gives the handles by name.
func (b *Book) all() []*Handle {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]*Handle, 0, len(b.handles))
	for _, name := range slices.Sorted(maps.Keys(b.handles)) {
		list = append(list, b.handles[name])
	}
	return list
}
