package authz

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/config"
)

const goodConfig = `
listen: unix:///run/writ/authz.sock
pilot: 127.0.0.1:15012
credential: {ca: "127.0.0.1:8443", trust_bundle: /b.pem, token_file: /t, dir: /d, trust_domain: cluster.local}
`

func TestConfig(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"good":           {goodConfig, ""},
		"mode":           {goodConfig + "socket_mode: '0666'", ""},
		"everything":     {goodConfig + "monitoring: 127.0.0.1:15014\nstate: /s\ndecision: {timeout: 1s, max_request_bytes: 2048, log: none, network_builtins: true, unknown_policy_wait: 0s, retire: 0s}\ntoken: {leeway: 0s}", ""},
		"unknown key":    {goodConfig + "listn: x", "listn"},
		"unknown deep":   {goodConfig + "decision: {time: 1s}", "time"},
		"wrong type":     {goodConfig + "decision: {timeout: 5}", "duration"},
		"no pilot":       {strings.Replace(goodConfig, "pilot: 127.0.0.1:15012", "", 1), "pilot: missing"},
		"no credential":  {"pilot: x:1", "missing"},
		"address":        {strings.Replace(goodConfig, "unix:///run", "unix://run", 1), "listen"},
		"mode too small": {goodConfig + "socket_mode: '0400'", "socket_mode"},
		"mode no octal":  {goodConfig + "socket_mode: rw", "socket_mode"},
		"timeout":        {goodConfig + "decision: {timeout: 2m}", "decision.timeout"},
		"timeout zero":   {goodConfig + "decision: {timeout: 0s}", "decision.timeout"},
		"size":           {goodConfig + "decision: {max_request_bytes: 1}", "decision.max_request_bytes"},
		"log":            {goodConfig + "decision: {log: some}", "decision.log"},
		"wait":           {goodConfig + "decision: {unknown_policy_wait: 5s}", "decision.unknown_policy_wait"},
		"retire":         {goodConfig + "decision: {retire: 2h}", "decision.retire"},
		"leeway":         {goodConfig + "token: {leeway: 1h}", "token.leeway"},
		"dropped":        {goodConfig + "root_namespace: istio-system", "root_namespace"},
		"pilot":          {strings.Replace(goodConfig, "127.0.0.1:15012", "pilot", 1), "pilot: address"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			file := filepath.Join(t.TempDir(), "authz.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			err := config.Load(file, &cfg)
			if err == nil {
				err = cfg.Validate()
			}
			if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}
