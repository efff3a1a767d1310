package bundle

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/authz/bundletest"
)

// TestFiguresDecide has the policy of docs/authorization.md decide by figures that
// somebody else serves in a bundle of their own, as they change.
func TestFiguresDecide(t *testing.T) {
	t.Parallel() // it mostly waits
	page, err := os.ReadFile("../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "<!-- figures -->\n```rego\n")
	text, _, found := strings.Cut(text, "```\n")
	if !found {
		t.Fatal("the page has no such policy")
	}
	s := newServer(t)
	figures := func(rate float64) {
		s.set("/figures.tar.gz", bundletest.Tarball(t, map[string]string{
			".manifest": `{"roots": ["figures"]}`, "data.json": fmt.Sprintf(`{"figures": {"error_rate": %v}}`, rate),
		}))
	}
	s.set("/rules.tar.gz", bundletest.Tarball(t, map[string]string{".manifest": `{"roots": ["envoy"]}`, "policy.rego": text}))
	figures(0.5)
	const polling = `"polling": {"min_delay_seconds": 0, "max_delay_seconds": 1, "long_polling_timeout_seconds": 20}`
	r := run(t, options(fmt.Sprintf(`{"services": {"s": {"url": %q}}, "bundles": {
		"rules": {"service": "s", "resource": "rules.tar.gz", %[2]s}, "figures": {"service": "s", "resource": "figures.tar.gz", %[2]s}}}`, s.URL, polling)))
	const closed, open = "too many errors", "healthy"
	r.decides(t, closed)
	figures(0.05)
	r.decides(t, open)
	figures(0.1)
	r.decides(t, closed)
}
