package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/config"
)

type sample struct {
	Listen string `yaml:"listen"`
	Nested struct {
		TTL config.Duration `yaml:"ttl"`
	} `yaml:"nested"`
}

// file writes a configuration file.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"good", "listen: a\nnested: {ttl: 10s}\n", ""},
		{"empty", "", ""},
		{"unknown key", "listen: a\nlistne: b\n", `f.yaml:2: unknown key "listne"`},
		{"wrong type", "listen: [a]\n", "f.yaml:1: cannot unmarshal"},
		{"bare number", "listen: a\nnested:\n  ttl: 10\n", `f.yaml:3: duration "10": want a number with a unit`},
		{"duplicate", "listen: a\nlisten: b\n", "already defined"},
		{"syntax", "listen: a\n\tx: y\n", "f.yaml:2: found a tab"},
		{"second document", "listen: a\n---\nlisten: b\n", "second one begins"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s sample
			err := config.Load(file(t, tc.in), &s)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestDefaultsStay(t *testing.T) {
	s := sample{Listen: "default"}
	if err := config.Load(file(t, "nested: {ttl: 1h30m}"), &s); err != nil {
		t.Fatal(err)
	}
	if s.Listen != "default" || s.Nested.TTL.D() != 90*time.Minute {
		t.Fatalf("got %+v", s)
	}
}
