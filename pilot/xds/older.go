package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"sync"
)

// older is what clients of an earlier version get instead; it is made once, by whoever
// asks first, for the first such client.
type older[T any] struct {
	once sync.Once
	v    *T
}

func (o *older[T]) get(f func() *T) *T {
	o.once.Do(func() { o.v = f() })
	return o.v
}

// configFor is what a client gets of a configuration.
func (s *Server) configFor(client Client, c *Config) *Config {
	if c == nil || s.opt.Old == nil || !s.opt.Old(client) {
		return c
	}
	return c.older.get(func() *Config {
		out := &Config{Node: c.Node, sets: make(map[string]*Set, len(c.sets))}
		for url, set := range c.sets {
			out.sets[url] = set.older.get(func() *Set { return s.olderSet(set) })
		}
		return out
	})
}

// olderSet is the set itself if it has nothing that is another one for old clients.
func (s *Server) olderSet(set *Set) *Set {
	out := &Set{TypeURL: set.TypeURL, needed: set.needed}
	same := true
	for _, r := range set.list {
		o := r.older.get(func() *Resource { return s.olderResource(r) })
		same = same && o == r
		out.list = append(out.list, o)
	}
	if same {
		return set
	}
	sum := sha256.Sum256(contentOf(out.list))
	out.Hash = hex.EncodeToString(sum[:16])
	return out
}

// olderResource is the resource itself if it cannot be made: then the client says what
// is wrong with it.
func (s *Server) olderResource(r *Resource) *Resource {
	body, err := s.opt.Older(r.wire.GetResource())
	if err != nil {
		s.opt.Log.Error("a resource cannot be made for clients of earlier versions", slog.String("resource", r.Name), slog.Any("error", err))
		return r
	}
	if body == r.wire.GetResource() {
		return r
	}
	o := r.with(body)
	o.needs, o.filtered, o.resolves = r.needs, r.filtered, r.resolves
	return o
}
