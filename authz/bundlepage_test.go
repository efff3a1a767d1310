package authz

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDocumentedBundles: the configuration of "Bundles" on the page is one.
func TestDocumentedBundles(t *testing.T) {
	page, err := os.ReadFile("../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## Bundles\n")
	_, text, _ := strings.Cut(section, "```yaml\n")
	text, _, found := strings.Cut(text, "```")
	if !found {
		t.Fatal("there is no example")
	}
	t.Setenv("OPS_PUBLIC_KEY", strings.ReplaceAll(testPublicKey, "\n", `\n`))
	s := &Standalone{ConfigFile: filepath.Join(t.TempDir(), "config.yaml")}
	text = strings.Replace(text, "/var/lib/writ-authz", t.TempDir(), 1)
	if err := os.WriteFile(s.ConfigFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

// testPublicKey is P-256, of nobody.
const testPublicKey = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9
q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==
-----END PUBLIC KEY-----
`
