package lastgood

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/writ-mesh/writ/nodeagent/statefile"
)

const (
	magic  = "WRITCFG1"
	suffix = ".config"
	// maxFile bounds the file of one proxy, in bytes: twice the largest message.
	maxFile = 128 << 20
	// debounce is how long after a change it is written, and flushRetry how long
	// after a write that failed, for example on a full disk.
	debounce   = 300 * time.Millisecond
	flushRetry = 10 * time.Second
)

// Store has the configurations of a node's proxies. It is safe for concurrent use.
type Store struct {
	dir   string
	log   *slog.Logger
	dirty chan struct{} // has one element after a change

	mu      sync.Mutex
	configs map[string]*Config
}

// NewStore returns a store whose files are in dir, which must exist. The caller
// runs Run.
func NewStore(dir string, log *slog.Logger) *Store {
	return &Store{dir: dir, log: log, dirty: make(chan struct{}, 1), configs: make(map[string]*Config)}
}

// Config is the configuration of one proxy. It is safe for concurrent use.
type Config struct {
	store   *Store
	proxyID string

	mu      sync.Mutex
	types   map[string]Type
	changed bool
	removed bool
}

// Open returns the configuration of a proxy, which is empty if none was kept.
func (s *Store) Open(ctx context.Context, proxyID string) *Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.configs[proxyID]; c != nil {
		return c
	}
	c := &Config{store: s, proxyID: proxyID, types: make(map[string]Type)}
	types, err := s.load(proxyID)
	switch {
	case err == nil:
		c.types = types
	case !errors.Is(err, fs.ErrNotExist):
		s.log.WarnContext(ctx, "stored configuration is not used", slog.String("proxy", proxyID), slog.Any("error", err))
	}
	s.configs[proxyID] = c
	return c
}

func (s *Store) load(proxyID string) (map[string]Type, error) {
	path := s.path(proxyID)
	payload, err := statefile.Read(path, magic, maxFile)
	if err != nil {
		return nil, err
	}
	id, types, err := decode(payload)
	if err == nil && id != proxyID {
		err = fmt.Errorf("it is for %q", id)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return types, nil
}

// path names the file by a hash: a proxy id may have any characters.
func (s *Store) path(proxyID string) string {
	sum := sha256.Sum256([]byte(proxyID))
	return filepath.Join(s.dir, hex.EncodeToString(sum[:16])+suffix)
}

// Keep forgets the configurations of the proxies that keep does not want, on disk
// too.
func (s *Store) Keep(ctx context.Context, keep func(proxyID string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.configs {
		if !keep(id) {
			delete(s.configs, id)
			c.remove(ctx)
		}
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		s.log.WarnContext(ctx, "old configurations are not removed", slog.Any("error", err))
		return
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		path := filepath.Join(s.dir, e.Name())
		payload, err := statefile.Read(path, magic, maxFile)
		if err != nil {
			continue
		}
		if id, _, err := decode(payload); err == nil && !keep(id) {
			_ = os.Remove(path)
		}
	}
}

// Run writes changes to disk until ctx ends, and what is left then.
func (s *Store) Run(ctx context.Context) error {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			s.flush(context.WithoutCancel(ctx))
			return ctx.Err()
		case <-s.dirty:
			select {
			case <-ctx.Done():
			case <-time.After(debounce):
			}
		case <-again:
		}
		again = nil
		if !s.flush(ctx) {
			again = time.After(flushRetry)
		}
	}
}

func (s *Store) flush(ctx context.Context) (ok bool) {
	s.mu.Lock()
	configs := make([]*Config, 0, len(s.configs))
	for _, c := range s.configs {
		configs = append(configs, c)
	}
	s.mu.Unlock()
	ok = true
	for _, c := range configs {
		if err := c.write(); err != nil {
			ok = false
			s.log.WarnContext(ctx, "configuration is not kept for a restart, will try again", slog.String("proxy", c.proxyID), slog.Any("error", err))
		}
	}
	return ok
}

func (s *Store) wake() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

func (c *Config) write() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.changed || c.removed {
		return nil
	}
	payload := encode(c.proxyID, c.types)
	if len(payload) > maxFile-1024 {
		c.changed = false // smaller by itself it will not get
		return fmt.Errorf("configuration has %d bytes, more than %d are not kept", len(payload), maxFile)
	}
	if err := statefile.Write(c.store.path(c.proxyID), magic, payload); err != nil {
		return err
	}
	c.changed = false
	return nil
}

func (c *Config) remove(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removed = true
	if err := os.Remove(c.store.path(c.proxyID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.store.log.WarnContext(ctx, "old configuration is not removed", slog.String("proxy", c.proxyID), slog.Any("error", err))
	}
}

// Update changes what is kept of a type. change gets the type as it is, with a
// map that it may change, and must not keep it.
func (c *Config) Update(url string, change func(*Type)) {
	c.mu.Lock()
	t := c.types[url]
	if t.Resources == nil {
		t.Resources = make(map[string]Resource)
	}
	change(&t)
	c.types[url] = t
	c.changed = true
	c.mu.Unlock()
	c.store.wake()
}

// View calls look with what is kept of a type; ok is false if the proxy never
// acknowledged anything of it. look must not change or keep the map.
func (c *Config) View(url string, look func(t Type, ok bool)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.types[url]
	look(t, ok)
}

// Empty tells whether nothing is kept.
func (c *Config) Empty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.types) == 0
}
