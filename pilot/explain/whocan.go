package explain

import (
	"cmp"
	"slices"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	"github.com/writ-mesh/writ/pilot/security/region"
)

// Callers is who may send a request to one workload.
type Callers struct {
	Workload string `json:"workload"`
	Port     uint32 `json:"port"`
	// Known are the identities of the mesh's workloads that get through, perhaps under
	// conditions; of whom is not here none does.
	Known []Caller `json:"known"`
	// Statements cover everybody: identities that no workload has yet, and callers
	// without one.
	Statements []Caller `json:"statements"`
	// Notes say where the answer is not exact.
	Notes []string `json:"notes,omitempty"`
}

// Caller is who gets through, and under which conditions, all of which have to hold.
type Caller struct {
	Who        string      `json:"who"`
	Result     string      `json:"result"`
	Conditions []Condition `json:"conditions,omitempty"`
}

// WhoCan says who may send a request: Question.From, Token and the caller's headers
// do not count.
func WhoCan(m *model.Mesh, q Question) ([]Callers, error) {
	targets, err := findTargets(m, &q, "")
	if err != nil {
		return nil, err
	}
	var out []Callers
	for _, t := range targets {
		l := &life{m: m, q: q, to: t, policies: eval.Select(m, t.proxy)}
		l.arrive()
		if err := l.normal(); err != nil {
			return nil, err
		}
		if l.decided != nil { // by the request itself, whoever sends it
			out = append(out, Callers{Workload: t.proxy.Namespace + "/" + workloadOf(t.proxy), Port: t.port.Port, Notes: []string{l.decided.By + ": " + l.decided.Detail}})
			continue
		}
		s, err := newSide(m, t.proxy, t.port, &eval.Request{Method: l.r.Method, Host: l.r.Host, Path: l.r.Path, Query: l.r.Query}, l.path)
		if err != nil {
			return nil, err
		}
		c, err := s.callers()
		if err != nil {
			return nil, err
		}
		c.Notes = append(c.Notes, s.unknownOf(m, q.Live)...)
		out = append(out, *c)
	}
	return out, nil
}

// passing are the requests that are not refused, in regions that have one outcome each.
func (s *side) passing() (*requestSpace, []region.Region, error) {
	space := newSpace(s.m, s.tcp(), issuerNames(s), s)
	sets := s.in(space)
	space.name(identities(s.m))
	if err := space.Split(); err != nil {
		return nil, nil, err
	}
	groups := [][]region.Term{space.impossible(), terms(sets.custom), terms(sets.deny), terms(sets.allow)}
	regions, err := space.Partition(groups, func(g []region.Group) (string, bool) {
		outcome, ok := s.outcome(g[1].State, g[2].State, g[3].State)
		switch {
		case g[0].State == region.True || ok && outcome == Refused:
			return "", true
		case g[0].State == region.Open:
			return "", false
		}
		return outcome, ok
	})
	return space, regions, err
}

func (s *side) callers() (*Callers, error) {
	space, regions, err := s.passing()
	if err != nil {
		return nil, err
	}
	out := &Callers{Workload: s.proxy.Namespace + "/" + workloadOf(s.proxy), Port: s.port.Port, Notes: s.notes(space)}
	callers := make([]region.Set, len(regions))
	for i, r := range regions {
		conditions, who := space.describe(r)
		text := "anybody"
		if who != nil {
			text = textOf(conditions, principalVar)
		}
		callers[i] = who
		out.Statements = append(out.Statements, Caller{text, r.Outcome, without(conditions, principalVar)})
	}
	for _, id := range identities(s.m) {
		cell, err := space.vars[principalVar].Locate(spiffeScheme + id)
		if err != nil {
			continue
		}
		for i, who := range callers {
			if who == nil || !who.And(cell).Empty() {
				out.Known = append(out.Known, Caller{id, regions[i].Outcome, out.Statements[i].Conditions})
			}
		}
	}
	return out, nil
}

// notes say where sets of requests are not all that there is to know.
func (s *side) notes(space *requestSpace) []string {
	var out []string
	if s.provider != "" {
		out = append(out, "what the provider "+s.provider+" answers cannot be told")
	}
	for _, name := range s.after {
		out = append(out, "what "+name+" decides is told by writ explain, for one request")
	}
	for _, p := range s.policies.Quota {
		out = append(out, p.ID()+" counts: what it has left is not known here")
	}
	out = append(out, s.severalTokens()...)
	out = append(out, patchedBy(s.m, s.proxy)...)
	for n := range space.notes {
		out = append(out, n)
	}
	slices.SortStableFunc(out, func(a, b string) int { return cmp.Compare(a, b) })
	return out
}

// patchedBy says that EnvoyFilters change a proxy, of which nobody can tell what comes of it.
func patchedBy(m *model.Mesh, p *model.Proxy) []string {
	var out []string
	for _, f := range m.EnvoyFiltersOf(p) {
		out = append(out, "what "+f.ID()+" changes in the proxy is not told")
	}
	return out
}

func textOf(conditions []Condition, name string) string {
	i := slices.IndexFunc(conditions, func(c Condition) bool { return c.Of == name })
	return conditions[i].Is
}

func without(conditions []Condition, name string) []Condition {
	return slices.DeleteFunc(slices.Clone(conditions), func(c Condition) bool { return c.Of == name || c.Is == "" })
}

// identities are those of all workloads of the mesh.
func identities(m *model.Mesh) []string {
	var out []string
	for _, p := range m.Proxies {
		out = append(out, principalOf(m, p))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func issuerNames(sides ...*side) []string {
	var out []string
	for _, s := range sides {
		for _, i := range s.issuers {
			out = append(out, i.name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
