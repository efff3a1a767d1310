package meshdir

import (
	"slices"
	"strings"
	"unicode"

	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// quotaInherit is written out for what holds if nothing is written.
	quotaInherit = "inherit"
	// whenLocal is the whenUnavailable that only QuotaPolicies have.
	whenLocal = "Local"
	// maxQuotaMatches and maxQuotaValues bound what Envoy compares for each request.
	maxQuotaMatches = 16
	maxQuotaValues  = 64
	// maxQuotaHost and maxQuotaTemplate bound what is compared by a regular expression:
	// Envoy takes small ones only there, and no others at all. A template's size is that
	// of its text, and templateSize for each part that stands for anything.
	maxQuotaHost     = 40
	maxQuotaTemplate = 80
	templateSize     = 20
	// maxQuotaText bounds the expression that all matches of a policy come to, in
	// characters: of one of more than 100,000 Envoy refuses all that comes with it.
	maxQuotaText = 95_000
)

type quotaMatch struct {
	Principals []string    `json:"principals"`
	Namespaces []string    `json:"namespaces"`
	Hosts      []string    `json:"hosts"`
	Methods    []string    `json:"methods"`
	Paths      []string    `json:"paths"`
	When       []quotaWhen `json:"when"`
}

// checkLayers checks what a policy says of requests and of other layers.
func (c *checker) checkLayers(s *quotaSpec) {
	ways := []string{quotaInherit, model.QuotaOverride, model.QuotaExempt}
	for _, said := range []struct{ at, way string }{{"spec.upper", s.Upper}, {"spec.lower", s.Lower}} {
		if said.way != "" && !slices.Contains(ways, said.way) {
			c.errorf(said.at, "unknown value %q: write inherit, override or exempt", shorten(said.way))
		}
	}
	if n := len(s.Match); n > maxQuotaMatches {
		c.errorf("spec.match", "%d are too many: at most %d; write several policies", n, maxQuotaMatches)
	}
	for i := range s.Match {
		c.checkQuotaMatch(index("spec.match", i), &s.Match[i])
	}
	names := map[string]bool{}
	for i, limit := range s.Limits {
		if limit.Name != "" && names[limit.Name] {
			c.errorf(index("spec.limits", i)+".name", "%q is given twice", shorten(limit.Name))
		}
		names[limit.Name] = true
	}
}

func (c *checker) checkQuotaMatch(at string, m *quotaMatch) {
	total := 0
	for _, list := range []struct {
		name   string
		values []string
	}{{"principals", m.Principals}, {"namespaces", m.Namespaces}, {"hosts", m.Hosts}, {"methods", m.Methods}, {"paths", m.Paths}} {
		place := at + "." + list.name
		total += len(list.values)
		c.noEmpty(place, list.values)
		if n := len(list.values); n > maxQuotaValues {
			c.errorf(place, "%d are too many: at most %d", n, maxQuotaValues)
		}
		for i, v := range list.values {
			c.quotaValue(list.name, index(place, i), v)
		}
	}
	for i := range m.When {
		total++
		c.checkQuotaWhen(index(at+".when", i), &m.When[i])
	}
	if total == 0 {
		c.errorf(at, "is empty: it would fit every request; remove it, or name what it is about")
	}
}

// quotaValue checks one value of a list of a match.
func (c *checker) quotaValue(list, at, v string) {
	if strings.ContainsFunc(v, unicode.IsControl) {
		c.errorf(at, "%q has a sign that no request has", shorten(v))
		return
	}
	switch list {
	case "principals":
		c.wildcard(at, v)
	case "namespaces":
		if strings.ContainsAny(v, "*/") {
			c.errorf(at, "%q is not the name of a namespace", shorten(v))
		}
	case "methods":
		if strings.Contains(v, "*") {
			c.errorf(at, "%q is not a method", shorten(v))
		}
	case "hosts":
		c.wildcard(at, v)
		if len(v) > maxQuotaHost || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
			c.errorf(at, "%q is not a host of at most %d characters; write * and the end of a longer one", shorten(v), maxQuotaHost)
		}
	case "paths":
		c.quotaPath(at, v)
	}
}

func (c *checker) quotaPath(at, v string) {
	parts := strings.Count(v, "{")
	if parts == 0 {
		c.wildcard(at, v)
		return
	}
	text := strings.NewReplacer("{*}", "", "{**}", "").Replace(v)
	if problem := templateProblem(v); problem != "" {
		c.errorf(at, "%q: %s", shorten(v), problem)
	} else if size := len(text) + parts*templateSize; size > maxQuotaTemplate {
		c.errorf(at, "the template is too large for Envoy: %d for each {*} and {**}, and one for each other character, come to %d of at most %d", templateSize, size, maxQuotaTemplate)
	}
}

// checkLocal checks a limit that the proxy has to keep while ratelimit is away.
func (c *checker) checkLocal(at string, limit *quotaLimit) {
	switch {
	case limit.Concurrent != nil:
		c.errorf(at+".concurrent", "whenUnavailable: Local counts requests as they come, not what is under way: write Allow or Deny, or another policy for this limit")
	case limit.Cost != nil:
		c.errorf(at+".cost", "whenUnavailable: Local counts requests, not their cost: write Allow or Deny, or another policy for this limit")
	case limit.Mode == "assigned":
		c.errorf(at+".mode", "an assigned limit goes on with what the proxy has anyway: write whenUnavailable Allow or Deny for when that is used up")
	case limit.Requests != nil && *limit.Requests == 0:
		c.errorf(at+".requests", "0 cannot be kept by the proxy: write whenUnavailable: Deny")
	}
}

// checkQuotaReferences checks what depends on the mesh. What other namespaces may do is
// said of the mesh's policies; those of one namespace are all of whoever may write there.
func (a *assembler) checkQuotaReferences(c *checker) {
	a.checkPolicySelector(c)
	s := c.object.spec.(*quotaSpec)
	size := 0
	for i := range s.Match {
		size += s.Match[i].textSize(append([]string{a.mesh.TrustDomain}, a.mesh.TrustDomainAliases...))
	}
	if size > maxQuotaText {
		c.errorf("spec.match", "its values are too long for Envoy: with what compares them they come to %d characters of at most %d; write several policies", size, maxQuotaText)
	}
	if s.Lower != "" && c.object.meta.Namespace != a.mesh.RootNamespace {
		c.errorf("spec.lower", "is for policies of the root namespace %s: in a namespace of its own nothing is needed, and nobody else can change what holds there but the mesh's", a.mesh.RootNamespace)
	}
}

// textSize is how many characters a match comes to in Envoy's expression, at most. What
// compares a value takes the most by far, and is there for each trust domain of the mesh.
func (m *quotaMatch) textSize(trustDomains []string) int {
	size := 64
	add := func(values []string, compare, each int) {
		for _, v := range values {
			size += compare + each*len(v) + 2*strings.Count(v, "%")
		}
	}
	for _, td := range trustDomains {
		add(m.Principals, 128+len(td), 2)
		add(m.Namespaces, 96+len(td), 2)
	}
	add(m.Hosts, 64, 4)
	add(m.Methods, 32, 2)
	add(m.Paths, 64, 4)
	for _, w := range m.When {
		value := 96 + 4*len(w.Key)
		size += (maxClaimSteps + 4) * value
		add(w.Values, value, 4)
	}
	return size
}

// matches gives the matches of a checked policy.
func (s *quotaSpec) matches() []model.QuotaMatch {
	var out []model.QuotaMatch
	for _, m := range s.Match {
		one := model.QuotaMatch{Principals: m.Principals, Namespaces: m.Namespaces, Hosts: m.Hosts, Methods: m.Methods, Paths: m.Paths}
		for _, w := range m.When {
			one.Claims = append(one.Claims, w.claim())
		}
		out = append(out, one)
	}
	return out
}

// way is what is written without the word for the default.
func way(text string) string {
	if text == quotaInherit {
		return model.QuotaInherit
	}
	return text
}
