package eval

import (
	"strings"

	"github.com/writ-mesh/writ/pilot/model"
)

// TemplateValue is by what the template of a quota's dimension tells apart requests to a
// path without query, see [model.Dimension.Template]. It is not ok for a path that does
// not fit.
func TemplateValue(template, path string) (value string, ok bool) {
	if len(path) > model.MaxTemplatePath {
		return "", false
	}
	held, ok := hold(strings.Split(template, "/"), strings.Split(path, "/"), nil)
	if !ok {
		return "", false
	}
	if len(held) == 0 {
		return template, true
	}
	return strings.Join(held, "/"), true
}

// hold adds what the named segments of a template hold to held.
func hold(template, path, held []string) ([]string, bool) {
	if len(template) == 0 {
		return held, len(path) == 0
	}
	if template[0] == "{**}" { // of which there is one
		rest := len(template) - 1
		if len(path) <= rest || !printable(strings.Join(path[:len(path)-rest], "/")) {
			return nil, false
		}
		return hold(template[1:], path[len(path)-rest:], held)
	}
	if len(path) == 0 {
		return nil, false
	}
	switch segment := path[0]; {
	case template[0] == "{*}":
		if segment == "" || !printable(segment) {
			return nil, false
		}
	case model.TemplateName(template[0]) != "":
		value, _, _ := strings.Cut(segment, ";")
		if value == "" || !printable(segment) || !oneSpelling(value) {
			return nil, false
		}
		held = append(held, value)
	case template[0] != segment:
		return nil, false
	}
	return hold(template[1:], path[1:], held)
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// oneSpelling says that servers cannot take another text for the same: it is made of
// characters that stand in paths as they are (RFC 3986 section 3.3), and of escapes of
// those beyond ASCII with large letters.
func oneSpelling(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~!$&'()*+,=:@", c) >= 0:
		case c == '%' && i+2 < len(s) && strings.IndexByte("89ABCDEF", s[i+1]) >= 0 && strings.IndexByte("0123456789ABCDEF", s[i+2]) >= 0:
			i += 2
		default:
			return false
		}
	}
	return true
}
