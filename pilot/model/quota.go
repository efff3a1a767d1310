package model

import (
	"slices"
	"strings"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// Key is what a limit is known by to policies of lower layers, which replace it by one
// of the same key: its name, or else what it counts and for whom.
func (l *QuotaLimit) Key() string {
	if l.Name != "" {
		return "name " + l.Name
	}
	counts := "requests"
	switch {
	case l.Algorithm == configpb.QuotaConcurrency:
		counts = "under way"
	case l.Cost != nil:
		counts = l.Cost.From + " " + l.Cost.Header
	}
	var per []string
	for _, d := range l.Per {
		per = append(per, d.Text)
	}
	slices.Sort(per)
	return counts + " per " + strings.Join(per, "\n")
}

// ContentHash is a hash of all by which ratelimit counts: what the limits are and what
// becomes of who is over. Which requests they are of, and what holds while ratelimit is
// away, is in routes, but for whether the proxy has to be told that it was counted.
func (p *QuotaPolicy) ContentHash() string {
	rest := *p // a field that is new counts until somebody says here that it does not
	rest.Meta, rest.Selector, rest.Match, rest.Upper, rest.Lower = Meta{}, nil, nil, "", ""
	rest.FailClosed, rest.Fingerprint = false, ""
	rest.Limits = slices.Clone(p.Limits)
	for i := range rest.Limits {
		rest.Limits[i].Name = ""
	}
	return contentHash(rest, "")
}

// Callers says that the match depends on who calls.
func (m *QuotaMatch) Callers() bool { return len(m.Principals)+len(m.Namespaces)+len(m.Claims) > 0 }

// MaxTemplatePath is how long a path may be, in bytes, to fit the template of a
// Dimension: proxies keep what they count by.
const MaxTemplatePath = 2048

// TemplateName is the name of a template's segment whose value tells requests apart:
// "id" of "{id}", "" of any other segment.
func TemplateName(segment string) string {
	name, opened := strings.CutPrefix(segment, "{")
	name, closed := strings.CutSuffix(name, "}")
	if !opened || !closed || strings.Contains(name, "*") {
		return ""
	}
	return name
}

// Template is the template of a path by which a dimension tells requests apart, "" if it
// is another dimension. The value is what the named segments of the template hold, with
// "/" between them, or the template itself without such segments.
func (d Dimension) Template() string {
	if d.Kind != "request.path" {
		return ""
	}
	return d.Arg
}

// TemplateNames are the names of its template's segments.
func (d Dimension) TemplateNames() []string {
	var out []string
	for segment := range strings.SplitSeq(d.Template(), "/") {
		if name := TemplateName(segment); name != "" {
			out = append(out, name)
		}
	}
	return out
}
