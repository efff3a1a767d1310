package security

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/writ-mesh/writ/pilot/model"
)

// contentKey is the same for policies that come to the same.
type contentKey = [sha256.Size]byte

// reuse keeps what policies come to, each of them and those of a workload together: each
// replica of a workload, and each of its ports, has the same, and so has the next
// revision where nothing of it was edited. It holds what its own revision is made of.
type reuse struct {
	keys map[*model.AuthorizationPolicy]contentKey
	// sets has functions that give contents, by what they are made of.
	sets sync.Map

	mu    sync.Mutex
	parts map[partKey]*part
	// earlier is that of the revision before, until this one is compiled.
	earlier *reuse
}

// partKey is what one policy is compiled for.
type partKey struct {
	policy contentKey
	action rbacv3.RBAC_Action
	tcp    bool
}

// part is what one policy comes to.
type part struct {
	rules []*madeRule
}

// madeRule is one rule of a policy.
type madeRule struct {
	name   string
	policy *rbacv3.Policy
	// entries are those of an index, for sidecars and for gateways.
	entries [2]struct {
		once sync.Once
		list []entry
		ok   bool
	}
}

// entriesFor is entriesOf, worked out once.
func (r *madeRule) entriesFor(gateway bool) ([]entry, bool) {
	e := &r.entries[0]
	if gateway {
		e = &r.entries[1]
	}
	e.once.Do(func() { e.list, e.ok = entriesOf(r.name, r.policy, gateway) })
	return e.list, e.ok
}

// newReuse takes each policy for another one.
func newReuse(m *model.Mesh) *reuse {
	r := &reuse{keys: make(map[*model.AuthorizationPolicy]contentKey, len(m.AuthorizationPolicies)), parts: map[partKey]*part{}}
	for i, p := range m.AuthorizationPolicies {
		var key contentKey
		binary.LittleEndian.PutUint64(key[:], uint64(i)) //nolint:gosec // not negative
		r.keys[p] = key
	}
	return r
}

// After has the compiler take over what the one of an earlier revision made of policies
// of the same content, which contents tells: all of a policy but its place in a file,
// its name included. It must be called before anything is compiled, and Settle after.
func (c *Compiler) After(earlier *Compiler, contents map[*model.AuthorizationPolicy][sha256.Size]byte) {
	c.reuse.keys = contents
	if earlier != nil && slices.Equal(earlier.trustDomains, c.trustDomains) && slices.Equal(earlier.mesh.FederatedDomains, c.mesh.FederatedDomains) && earlier.treeThreshold == c.treeThreshold {
		c.reuse.earlier = earlier.reuse
	}
}

// Settle lets go of the earlier revision. Nothing may be compiled meanwhile.
func (c *Compiler) Settle() { c.reuse.earlier = nil }

// once gives what compile makes of policies, which is called for the first replica of
// the first revision only.
func (r *reuse) once(action rbacv3.RBAC_Action, gateway bool, policies []*model.AuthorizationPolicy, compile func() (contents, error)) (contents, error) {
	h := sha256.New()
	kind := []byte{byte(action), 0}
	if gateway {
		kind[1] = 1
	}
	h.Write(kind)
	for _, p := range policies {
		k, ok := r.keys[p]
		if !ok {
			return compile() // made for this workload, of ServiceRoles
		}
		h.Write(k[:])
	}
	key := contentKey(h.Sum(nil))
	known, _ := r.sets.LoadOrStore(key, sync.OnceValues(func() (contents, error) {
		if r.earlier != nil {
			if known, ok := r.earlier.sets.Load(key); ok {
				if made, err := known.(func() (contents, error))(); err == nil { //nolint:forcetypeassert // stored here only
					r.carry(policies, action)
					return made, nil
				}
			}
		}
		return compile()
	}))
	return known.(func() (contents, error))() //nolint:forcetypeassert // stored here only
}

// carry takes the parts of a set over that is taken over as a whole: the next edit may
// be of one of its policies.
func (r *reuse) carry(policies []*model.AuthorizationPolicy, action rbacv3.RBAC_Action) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range policies {
		key := partKey{r.keys[p], action, false}
		if known := r.earlierPart(key); known != nil {
			r.parts[key] = known
		}
	}
}

// earlierPart is nil for none.
func (r *reuse) earlierPart(key partKey) *part {
	if r.earlier == nil {
		return nil
	}
	r.earlier.mu.Lock() // who asks for the status may still compile with it
	defer r.earlier.mu.Unlock()
	return r.earlier.parts[key]
}

// part gives what compile makes of one policy, once. What fails is not kept.
func (r *reuse) part(p *model.AuthorizationPolicy, action rbacv3.RBAC_Action, tcp bool, compile func() (*part, error)) (*part, error) {
	content, ok := r.keys[p]
	if !ok {
		return compile()
	}
	key := partKey{content, action, tcp}
	r.mu.Lock()
	known := r.parts[key]
	if known == nil {
		if known = r.earlierPart(key); known != nil {
			r.parts[key] = known
		}
	}
	r.mu.Unlock()
	if known != nil {
		return known, nil
	}
	made, err := compile()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parts[key] = made
	return made, nil
}
