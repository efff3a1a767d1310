package decisionlog

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Redacted stands where a secret was.
const Redacted = "[redacted]"

// Redactor takes secrets out of what is written down. It is by name, and by the
// look of tokens, so a secret under a name that nobody told it is not known to it.
type Redactor struct {
	headers, query, claims map[string]bool
}

// NewRedactor knows the names that usually hold secrets, and those given, in lower
// case or not.
func NewRedactor(headers, query, claims []string) *Redactor {
	return &Redactor{
		headers: set(headers, "authorization", "proxy-authorization", "cookie", "set-cookie", "x-forwarded-access-token", "x-goog-iap-jwt-assertion"),
		query:   set(query, "access_token", "id_token", "refresh_token", "code", "key", "sig", "signature", "x-amz-signature", "session", "sid", "auth", "jwt", "assertion"),
		claims:  set(claims),
	}
}

func set(more []string, names ...string) map[string]bool {
	out := make(map[string]bool, len(more)+len(names))
	for _, n := range slices.Concat(names, more) {
		out[strings.ToLower(n)] = true
	}
	return out
}

// secretParts are in names of headers and parameters that hold secrets.
var secretParts = []string{"token", "secret", "password", "passwd", "apikey", "api-key", "api_key", "credential", "session", "csrf", "private"} //nolint:gochecknoglobals // constant

// looksSecret finds JWTs, and keys after the words that announce them.
var looksSecret = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+\.?[A-Za-z0-9_-]*|(?i:\b(?:bearer|basic|negotiate)\s+[A-Za-z0-9+/=._~-]{4,})`)

func secret(names map[string]bool, name string) bool {
	name = strings.ToLower(name)
	return names[name] || slices.ContainsFunc(secretParts, func(p string) bool { return strings.Contains(name, p) })
}

// Header gives a header's value to write down. What may be a URL, as in :path and
// referer, loses the secrets of its query.
func (r *Redactor) Header(name, value string) string {
	if secret(r.headers, name) {
		return Redacted
	}
	if before, query, ok := strings.Cut(value, "?"); ok {
		return r.text(before) + "?" + r.Query(query)
	}
	return r.text(value)
}

// Claim gives a claim's value to write down; objects and lists are walked through.
func (r *Redactor) Claim(name string, value any) any {
	if r.claims[strings.ToLower(name)] {
		return Redacted
	}
	switch v := value.(type) {
	case string:
		return r.text(v)
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = r.Claim("", x)
		}
		return out
	case map[string]any:
		return r.Claims(v)
	}
	return value
}

// Claims gives the claims of a token to write down.
func (r *Redactor) Claims(claims map[string]any) map[string]any {
	out := make(map[string]any, len(claims))
	for k, v := range claims {
		out[k] = r.Claim(k, v)
	}
	return out
}

// Path gives a path without its query, and the query, to write down.
func (r *Redactor) Path(path string) (plain, query string) {
	plain, query, _ = strings.Cut(path, "?")
	return r.text(plain), r.Query(query)
}

// Query gives a query to write down: names stay, values of secrets go.
func (r *Redactor) Query(query string) string {
	if query == "" {
		return ""
	}
	parts := strings.Split(query, "&")
	for i, p := range parts {
		name, value, valued := strings.Cut(p, "=")
		plain, err := url.QueryUnescape(name)
		unescaped, valueErr := url.QueryUnescape(value)
		switch {
		case looksSecret.MatchString(name) || looksSecret.MatchString(plain):
			parts[i] = Redacted
		case !valued:
		case err != nil || secret(r.query, plain) || looksSecret.MatchString(value) || valueErr == nil && looksSecret.MatchString(unescaped):
			parts[i] = name + "=" + Redacted
		}
	}
	return strings.Join(parts, "&")
}

// text takes what looks like a token out of any text.
func (r *Redactor) text(s string) string {
	if len(s) < 10 {
		return s
	}
	if i := strings.IndexByte(s, '%'); i >= 0 {
		if plain, err := url.PathUnescape(s); err == nil && looksSecret.MatchString(plain) {
			return Redacted
		}
	}
	if !strings.Contains(s, "eyJ") && !strings.ContainsAny(s, " \t\n\f\r") {
		return s // neither of both forms
	}
	return looksSecret.ReplaceAllString(s, Redacted)
}
