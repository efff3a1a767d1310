package docs_test

import (
	"go/ast"
	"go/token"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// metricName is that of a metric of ours.
var metricName = regexp.MustCompile(`^writ_(ca|nodeagent|authz|ratelimit|pilot)(_[a-z]+)+$`)

// metricsInCode are the names that stand in the code of the five services, with
// all other texts of the same call, among which is the help.
func metricsInCode(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range []string{"ca", "nodeagent", "authz", "ratelimit", "pilot"} {
		for _, f := range sources(t, dir) {
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				name, rest := "", ""
				ast.Inspect(call, func(n ast.Node) bool {
					lit, ok := n.(*ast.BasicLit)
					if !ok || lit.Kind != token.STRING {
						return true
					}
					text, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					if name == "" && metricName.MatchString(text) {
						name = text
					} else if name != "" {
						rest += text
					}
					return true
				})
				// The innermost call, which is seen last, has the least text.
				if name != "" && (out[name] == "" || rest != "" && len(rest) < len(out[name])) {
					out[name] = rest
				}
				return true
			})
		}
	}
	return out
}

func TestMetricsAreTold(t *testing.T) {
	inCode := metricsInCode(t)
	if len(inCode) < 40 {
		t.Errorf("only %d metrics were found in the code", len(inCode))
	}
	section := ""
	told := map[string]bool{}
	for line := range strings.Lines(read(t, "metrics.md")) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "## "); ok {
			section, _, _ = strings.Cut(rest, ":")
		}
		m := regexp.MustCompile("^\\| `([a-z_]+)` \\| (counter|gauge|histogram) \\| ([a-z, -]+) \\| (.+) \\|$").FindStringSubmatch(line)
		if m == nil {
			if strings.HasPrefix(line, "| `") {
				t.Errorf("not a row: %s", line)
			}
			continue
		}
		name, kind, help := m[1], m[2], m[4]
		text, known := inCode[name]
		switch {
		case !known:
			t.Errorf("%s is not in the code", name)
		case told[name]:
			t.Errorf("%s stands there twice", name)
		case !strings.HasPrefix(name, "writ_"+section+"_"):
			t.Errorf("%s is not of %s", name, section)
		case (kind == "counter") != strings.HasSuffix(name, "_total"):
			t.Errorf("%s is a %s: counters end in _total, and nothing else does", name, kind)
		case !strings.Contains(text, help):
			t.Errorf("%s: the page says %q, the code %q", name, help, text)
		}
		told[name] = true
	}
	for name := range inCode {
		if !told[name] {
			t.Errorf("%s is missing", name)
		}
	}
}
