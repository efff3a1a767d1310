package sds

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// settle is how long it takes a proxy at most to come back after its stream broke
// or the agent was started: several times the longest back-off of its bootstrap,
// which is a second. Until then nobody knows what it has.
const settle = 10 * time.Second

// returning stands for the proxies that may still come back after the agent was
// started.
const returning = "(proxies that were connected before the agent started)"

// Standing is which proxies use what.
type Standing struct {
	// Behind are the node ids of proxies that have not accepted the newest trust
	// bundle.
	Behind []string
	// Stale are those that have a certificate of another authority than the one
	// asked for.
	Stale []string
	// Authorities are the key ids of the authorities of the certificates in use; an
	// empty one stands for an unknown.
	Authorities []string
}

// given is a version of a secret. authority is that of a certificate.
type given struct{ version, authority string }

// holding is what the client of a stream has of one secret.
type holding struct {
	// has was accepted; its version is empty if nothing was.
	has given
	// sent was sent with nonce and may not be answered yet.
	sent  given
	nonce string
}

// holdings are those of a stream, by the names that it subscribes to.
type holdings map[string]*holding

// subscribed begins a subscription of a client that has some version already, or
// none.
func (h holdings) subscribed(name, version string) {
	if h[name] == nil {
		h[name] = &holding{has: given{version: version}}
	}
}

// sent takes down that a secret was sent.
func (h holdings) sent(name, nonce string, v secret) {
	if s := h[name]; s != nil {
		s.sent, s.nonce = given{v.version, v.authority}, nonce
	}
}

// same takes down that the newest version is the one that the client came with.
func (h holdings) same(name string, v secret) {
	if s := h[name]; s != nil && s.has.version == v.version {
		s.has.authority = v.authority
	}
}

// answered takes an answer of the client. One to a response that was followed by
// another says less than the answer to that will.
func (h holdings) answered(nonce string, ev event) {
	for _, s := range h {
		if ev == acked && s.nonce == nonce {
			s.has = s.sent
		}
	}
}

// position is where a stream stands, as others see it.
type position struct {
	proxyID string
	// root, federated and leaf are nil for a client that does not want them.
	root, federated, leaf *given
	// closed: the stream has ended, but perhaps not its process.
	closed bool
}

// bundles are the secrets with the trust bundle that the client wants, by name.
func (pos *position) bundles() map[string]*given {
	out := make(map[string]*given, 2)
	if pos.root != nil {
		out[NameRoot] = pos.root
	}
	if pos.federated != nil {
		out[NameFederated] = pos.federated
	}
	return out
}

// positions are those of all streams.
type positions struct {
	began time.Time
	moved func()

	mu  sync.Mutex
	all map[*position]struct{}
}

func newPositions(moved func()) *positions {
	time.AfterFunc(settle, moved)
	return &positions{began: time.Now(), moved: moved, all: make(map[*position]struct{})}
}

func (p *positions) open(proxyID string) *position {
	p.mu.Lock()
	defer p.mu.Unlock()
	pos := &position{proxyID: proxyID}
	p.all[pos] = struct{}{}
	return pos
}

// update takes over what a stream holds.
func (p *positions) update(pos *position, h holdings) {
	copied := func(name string) *given {
		if s := h[name]; s != nil {
			has := s.has
			return &has
		}
		return nil
	}
	root, federated, leaf := copied(NameRoot), copied(NameFederated), copied(NameDefault)
	p.mu.Lock()
	same := equal(root, pos.root) && equal(federated, pos.federated) && equal(leaf, pos.leaf)
	pos.root, pos.federated, pos.leaf = root, federated, leaf
	p.mu.Unlock()
	if !same {
		p.moved()
	}
}

func equal(a, b *given) bool { return a == b || a != nil && b != nil && *a == *b }

// close ends a stream. Its position is remembered for as long as the proxy may come
// back, unless the proxy is known to be gone.
func (p *positions) close(pos *position, gone bool) {
	p.mu.Lock()
	pos.closed = true
	if gone {
		delete(p.all, pos)
	}
	p.mu.Unlock()
	p.moved()
	if gone {
		return
	}
	time.AfterFunc(settle, func() {
		p.mu.Lock()
		delete(p.all, pos)
		p.mu.Unlock()
		p.moved()
	})
}

// bundleOf is the version of the bundle in that of a trust bundle with lists or other
// trust domains: whether a proxy has the newest of those is no matter of a rotation.
func bundleOf(version string) string {
	bundle, _, _ := strings.Cut(version, crlMark)
	return bundle
}

// standing compares all positions with the version of the newest trust bundle and
// the authority that signs now, which is empty if it is unknown.
func (p *positions) standing(root, active string) Standing {
	p.mu.Lock()
	defer p.mu.Unlock()
	var st Standing
	if time.Since(p.began) < settle {
		st.Behind = append(st.Behind, returning)
	}
	open := make(map[string]bool) // proxy and secret
	for pos := range p.all {
		for name := range pos.bundles() {
			open[pos.proxyID+name] = open[pos.proxyID+name] || !pos.closed
		}
		if !pos.closed && pos.leaf != nil {
			open[pos.proxyID+NameDefault] = true
		}
	}
	for pos := range p.all {
		for name, has := range pos.bundles() {
			if bundleOf(has.version) != root && !(pos.closed && open[pos.proxyID+name]) {
				st.Behind = append(st.Behind, pos.proxyID)
			}
		}
		if pos.leaf == nil || pos.leaf.version == "" || pos.closed && open[pos.proxyID+NameDefault] {
			continue
		}
		st.Authorities = append(st.Authorities, pos.leaf.authority)
		if active != "" && pos.leaf.authority != active {
			st.Stale = append(st.Stale, pos.proxyID)
		}
	}
	for _, names := range []*[]string{&st.Behind, &st.Stale, &st.Authorities} {
		slices.Sort(*names)
		*names = slices.Compact(*names)
	}
	return st
}
