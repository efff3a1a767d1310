package translate

import (
	"bytes"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

func TestOlderEnvoy(t *testing.T) {
	for version, want := range map[string]bool{
		"1.36.2": true, "1.39.9": true, "1.40.0": false, "1.41.1": false, "2.0.0": false, "0.99.0": true, "": true, "dev": true, "1": true,
	} {
		if OlderEnvoy(version) != want {
			t.Errorf("%q: %t", version, !want)
		}
	}
}

// TestForOlderEnvoys: only the groups of TLS are gone, from every log, and a format of
// the mesh's own stays what it is.
func TestForOlderEnvoys(t *testing.T) {
	const custom = `{"group": "%DOWNSTREAM_TLS_GROUP%"}`
	for name, tc := range map[string]struct {
		config string
		stays  bool
	}{
		"stdout": {},
		"a file": {config: "accessLogFile: /tmp/access.log"},
		"custom": {config: "accessLogEncoding: JSON\n  accessLogFormat: '" + custom + "'", stays: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newMesh(t)
			client := b.workload("client-1", "default", "client", nil, "http:9000", "tcp:9001")
			client.Interception = model.Redirect
			b.service("client", "default", client)
			if tc.config != "" {
				b.apply("kind: MeshConfig\nmetadata: {name: mesh}\nspec:\n  " + tc.config + "\n")
			}
			s := b.snapshot(client)
			logs := 0
			for _, r := range s.Listeners {
				body, err := packed(r.Message)
				if err != nil {
					t.Fatal(err)
				}
				older, err := ForOlderEnvoys(body)
				if err != nil {
					t.Fatal(err)
				}
				had := bytes.Contains(body.GetValue(), []byte("TLS_GROUP%"))
				if had {
					logs++
				}
				if !had && older != body {
					t.Errorf("%s is another one", r.Name)
				}
				if has := bytes.Contains(older.GetValue(), []byte("TLS_GROUP%")); has != (had && tc.stays) {
					t.Errorf("%s: older Envoys are told of groups: %t", r.Name, has)
				}
				if bytes.Contains(body.GetValue(), []byte("denied_by")) != bytes.Contains(older.GetValue(), []byte("denied_by")) {
					t.Errorf("%s: the rest is another", r.Name)
				}
			}
			if logs == 0 {
				t.Error("no listener has the group in its log")
			}
			for _, r := range s.Clusters {
				body, err := packed(r.Message)
				if err != nil {
					t.Fatal(err)
				}
				if older, err := ForOlderEnvoys(body); older != body || err != nil {
					t.Errorf("%s is another one, %v", r.Name, err)
				}
			}
		})
	}
}
