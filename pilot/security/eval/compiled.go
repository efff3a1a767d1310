package eval

import "github.com/writ-mesh/writ/pilot/model"

// Compiled keeps which policies of one mesh apply to which proxy, and their rules, for
// somebody who asks about many requests to it; nil keeps nothing. The model must not
// change. It is for one goroutine at a time.
type Compiled struct {
	selected map[*model.Proxy]Policies
	rules    map[rulesKey]rulesOrError
}

type rulesKey struct {
	policy *model.AuthorizationPolicy
	tcp    bool
}

type rulesOrError struct {
	rules []*Rule
	err   error
}

// NewCompiled makes one that knows nothing yet.
func NewCompiled() *Compiled {
	return &Compiled{selected: make(map[*model.Proxy]Policies), rules: make(map[rulesKey]rulesOrError)}
}

// Select is [Select].
func (c *Compiled) Select(m *model.Mesh, p *model.Proxy) Policies {
	if c == nil {
		return Select(m, p)
	}
	s, ok := c.selected[p]
	if !ok {
		s = Select(m, p)
		c.selected[p] = s
	}
	return s
}

// Rules is [Rules], with the domains of the mesh.
func (c *Compiled) Rules(d Domains, pol *model.AuthorizationPolicy, tcp bool) ([]*Rule, error) {
	if c == nil {
		return Rules(d, pol, tcp)
	}
	k := rulesKey{pol, tcp}
	r, ok := c.rules[k]
	if !ok {
		r.rules, r.err = Rules(d, pol, tcp)
		c.rules[k] = r
	}
	return r.rules, r.err
}
