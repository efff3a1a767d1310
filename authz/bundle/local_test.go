package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Files, folders and bundles on this machine decide; what cannot be read is named.
func TestReadLocal(t *testing.T) {
	t.Parallel() // it mostly waits
	dir := t.TempDir()
	for name, text := range map[string]string{
		"p/policy.rego": "package envoy.authz\nallow := {\"allowed\": true, \"reason\": data.settings.paths[0]}", "data.json": `{"settings": {"paths": ["ratings"]}}`,
		"folder/policy.rego": "package envoy.authz\nallow := {\"allowed\": true, \"reason\": data.settings.paths[0]}", "folder/settings/data.json": `{"paths": ["ratings"]}`,
		"broken.rego": "package x\nallow if {", "broken.json": "{\"a\": 1,\n]",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := func(names ...string) (paths []string) {
		for _, name := range names {
			paths = append(paths, filepath.Join(dir, name))
		}
		return paths
	}
	for name, l := range map[string]*Local{
		"files":  local(t, at("p/policy.rego", "data.json"), nil),
		"folder": local(t, at("folder"), nil),
		"bundle": local(t, nil, at("folder")),
	} {
		o := options("{}")
		o.Local = l
		if got := run(t, o).ask(t); got != "ratings" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for name, want := range map[string]string{"none.rego": "none.rego", "broken.rego": "broken.rego:2", "broken.json": "broken.json", "none.json": "none.json"} {
		if _, err := ReadLocal(at(name), nil, false); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %q, want one with %q", name, err, want)
		}
	}
}
