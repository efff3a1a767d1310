package token

import (
	"net/url"
	"strings"
)

// Header is a header that carries a token behind a prefix, which may be empty.
type Header struct{ Name, Prefix string }

// Locations are the places of a request where a token is looked for. The zero
// value means the default of Istio and Envoy: the header Authorization with the
// prefix "Bearer ", and the query parameter access_token.
type Locations struct {
	Headers []Header
	Params  []string
	Cookies []string
}

// Request is the part of a request that may carry tokens. Header names are in
// lower case, values of one header are joined by commas as Envoy does.
type Request struct {
	Headers map[string]string
	// Path is with the query.
	Path string
}

// Find gives the tokens at these places in order, without repetitions.
func (l Locations) Find(r Request) []string {
	if len(l.Headers)+len(l.Params)+len(l.Cookies) == 0 {
		l.Headers = []Header{{Name: "authorization", Prefix: "Bearer "}}
		l.Params = []string{"access_token"}
	}
	var out []string
	add := func(s string) {
		if s == "" {
			return
		}
		for _, seen := range out {
			if seen == s {
				return
			}
		}
		out = append(out, s)
	}
	for _, h := range l.Headers {
		// As in Envoy the prefix counts with its case.
		if v, ok := strings.CutPrefix(r.Headers[strings.ToLower(h.Name)], h.Prefix); ok {
			add(strings.TrimSpace(v))
		}
	}
	if len(l.Params) > 0 {
		fromQuery(l.Params, r.Path, add)
	}
	for _, name := range l.Cookies {
		add(cookie(r.Headers["cookie"], name))
	}
	return out
}

func fromQuery(params []string, path string, add func(string)) {
	_, raw, ok := strings.Cut(path, "?")
	if !ok {
		return
	}
	query, err := url.ParseQuery(raw)
	if err != nil {
		return
	}
	for _, p := range params {
		for _, v := range query[p] {
			add(v)
		}
	}
}

// cookie finds a cookie in a header; Envoy joins several by "; ".
func cookie(header, name string) string {
	for part := range strings.SplitSeq(header, ";") {
		k, v, ok := strings.Cut(strings.TrimSpace(part), "=")
		if ok && k == name {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}
