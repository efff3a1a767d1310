package proxyconfig

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
)

// route is what is told of a route.
type route struct {
	Match  match `json:"match"`
	Action *struct {
		Cluster  string            `json:"cluster"`
		Header   string            `json:"cluster_header"`
		Weighted *weightedClusters `json:"weighted_clusters"`
		Plugin   json.RawMessage   `json:"inline_cluster_specifier_plugin"`
	} `json:"route"`
	Redirect *struct {
		Host   string `json:"host_redirect"`
		Path   string `json:"path_redirect"`
		Prefix string `json:"prefix_rewrite"`
		HTTPS  bool   `json:"https_redirect"`
	} `json:"redirect"`
	Direct *struct {
		Status int `json:"status"`
	} `json:"direct_response"`
}

type weightedClusters struct {
	Clusters []struct {
		Name   string `json:"name"`
		Weight uint32 `json:"weight"`
	} `json:"clusters"`
}

func (w *weightedClusters) text() string {
	var out []string
	for _, c := range w.Clusters {
		out = append(out, fmt.Sprintf("%s (weight %d)", c.Name, c.Weight))
	}
	return strings.Join(out, ", ")
}

func (r *route) destination() string {
	switch {
	case r.Direct != nil:
		return fmt.Sprintf("answer %d", r.Direct.Status)
	case r.Redirect != nil:
		to := cmp.Or(r.Redirect.Host, "the same host") + cmp.Or(r.Redirect.Path, r.Redirect.Prefix)
		if r.Redirect.HTTPS {
			to += " by HTTPS"
		}
		return "redirect to " + to
	case r.Action == nil:
		return ""
	case r.Action.Weighted != nil:
		return r.Action.Weighted.text()
	case r.Action.Header != "":
		return "the cluster that the header " + r.Action.Header + " names"
	case r.Action.Plugin != nil:
		return "the cluster that a plugin chooses"
	}
	return r.Action.Cluster
}

// match is what a route wants of a request.
type match struct {
	Prefix    *string         `json:"prefix"`
	Path      string          `json:"path"`
	Separated string          `json:"path_separated_prefix"`
	Regex     *regex          `json:"safe_regex"`
	Template  json.RawMessage `json:"path_match_policy"`
	Connect   json.RawMessage `json:"connect_matcher"`
	// CaseSensitive is true if it is not there.
	CaseSensitive *bool             `json:"case_sensitive"`
	Headers       []header          `json:"headers"`
	Query         []header          `json:"query_parameters"`
	Metadata      []json.RawMessage `json:"dynamic_metadata"`
}

type regex struct {
	Regex string `json:"regex"`
}

// header is what is wanted of a header or of a query parameter.
type header struct {
	Name    string       `json:"name"`
	Text    *stringMatch `json:"string_match"`
	Present *bool        `json:"present_match"`
	Invert  bool         `json:"invert_match"`
}

type stringMatch struct {
	Exact      *string `json:"exact"`
	Prefix     string  `json:"prefix"`
	Suffix     string  `json:"suffix"`
	Contains   string  `json:"contains"`
	Regex      *regex  `json:"safe_regex"`
	IgnoreCase bool    `json:"ignore_case"`
}

func (m *match) text() string {
	parts := []string{m.path()}
	if m.CaseSensitive != nil && !*m.CaseSensitive {
		parts[0] += " in any case"
	}
	for i := range m.Headers {
		parts = append(parts, m.Headers[i].text(""))
	}
	for i := range m.Query {
		parts = append(parts, m.Query[i].text("query "))
	}
	if len(m.Metadata) > 0 {
		parts = append(parts, "claims")
	}
	return strings.Join(parts, ", ")
}

func (m *match) path() string {
	switch {
	case m.Connect != nil:
		return "CONNECT"
	case m.Path != "":
		return m.Path
	case m.Separated != "":
		return m.Separated + ", " + m.Separated + "/*"
	case m.Regex != nil:
		return "regex " + m.Regex.Regex
	case m.Template != nil:
		return "a template"
	case m.Prefix != nil:
		return *m.Prefix + "*"
	}
	return "*"
}

func (h *header) text(kind string) string {
	not := ""
	if h.Invert {
		not = "not "
	}
	if h.Text == nil {
		if h.Present != nil && !*h.Present {
			not = "not "
		}
		return not + kind + h.Name
	}
	return not + kind + h.Name + " " + h.Text.text()
}

func (s *stringMatch) text() string {
	out := "*"
	switch {
	case s.Exact != nil:
		out = *s.Exact
	case s.Prefix != "":
		out = s.Prefix + "*"
	case s.Suffix != "":
		out = "*" + s.Suffix
	case s.Contains != "":
		out = "*" + s.Contains + "*"
	case s.Regex != nil:
		out = "regex " + s.Regex.Regex
	}
	if s.IgnoreCase {
		out += " in any case"
	}
	return "= " + out
}
