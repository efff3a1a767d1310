package stack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFurtherKeys(t *testing.T) {
	own := map[string]any{"trust_domain": "cluster.local"}
	for name, tc := range map[string]struct{ content, want, err string }{
		"nothing":   {"", "", ""},
		"one":       {"jwt: {ttl: 1m}", "jwt", ""},
		"ours":      {"trust_domain: a.example", "", "trust_domain is what writ up sets itself"},
		"no object": {"- a", "", "cannot unmarshal"},
	} {
		file := filepath.Join(t.TempDir(), "ca.yaml")
		if err := os.WriteFile(file, []byte(tc.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := furtherKeys("ca", file, own)
		if (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %v, want %q", name, err, tc.err)
		}
		if _, has := got[tc.want]; tc.want != "" && !has {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got, err := furtherKeys("ca", "", own); got != nil || err != nil {
		t.Errorf("without a file: %v, %v", got, err)
	}
	if _, err := furtherKeys("ca", "/nowhere/ca.yaml", own); err == nil {
		t.Error("a file that is not there")
	}
}
