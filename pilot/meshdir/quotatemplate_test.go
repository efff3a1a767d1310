package meshdir

import (
	"slices"
	"strings"
	"testing"
)

// TestTemplatesInPer: which templates are taken, the largest included, which real Envoys
// take in package security.
func TestTemplatesInPer(t *testing.T) {
	for text, names := range map[string][]string{
		"/users/{id}/orders": {"id"}, "/": nil, "/login/": nil, "/a.b(c);x%20/{*}/{**}/end": nil, "/{a}/{_b2}/{**}": {"a", "_b2"},
		"/{a}/{b}/{c}/{d}/" + strings.Repeat("k", 11): {"a", "b", "c", "d"}, "/{*}/{**}/" + strings.Repeat("k", 65): nil, "/" + strings.Repeat("k", 79): nil,
	} {
		d, problem := parseDimension("request.path[" + text + "]")
		if problem != "" || d.Template() != text || d.Text != "request.path["+text+"]" || !slices.Equal(d.TemplateNames(), names) {
			t.Errorf("%s: %+v, names %q, %s", text, d, d.TemplateNames(), problem)
		}
	}
	if d, problem := parseDimension("request.path[/" + strings.Repeat("k", 80) + "]"); problem == "" {
		t.Errorf("a template that is too large is taken: %+v", d)
	}
	if d, _ := parseDimension("request.path"); d.Template() != "" || d.Kind != "request.path" {
		t.Errorf("the path itself is %+v", d)
	}
}
