package bundle

import (
	"encoding/json"
	"testing"
)

// FuzzServices reads any section of services, which discovery may bring: an error, or
// services of which each is reached through its guard alone.
func FuzzServices(f *testing.F) {
	for _, seed := range []string{
		`{"a": {"url": "https://a.example"}}`, `[{"name": "a", "url": "https://a.example"}, {"name": "a", "url": "https://b.example"}]`, `{"a": {"url": "file:///etc/passwd"}}`,
		`{"a": {"url": "https://a.example", "credentials": {"plugin": "x"}}}`, `{"a": {"url": "https://a.example", "credentials": {"bearer": {"token": "t"}}}}`, `[]`, `null`, `7`, `{"a": null}`, "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, section []byte) {
		if !json.Valid(section) {
			return // it is part of a larger document
		}
		out, guards, err := guardServices(section, Limits{})
		if err != nil {
			return
		}
		var services map[string]struct {
			Credentials map[string]any `json:"credentials"`
		}
		if err := json.Unmarshal(out, &services); err != nil || len(services) != len(guards) {
			t.Fatalf("%q became %q: %v", section, out, err)
		}
		for name, s := range services {
			plugin, _ := s.Credentials["plugin"].(string)
			if len(s.Credentials) != 1 || guards[plugin] == nil {
				t.Errorf("the service %q is reached by %v", name, s.Credentials)
			}
		}
	})
}
