package ca

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/config"
)

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"good", func(*Config) {}, ""},
		{"alone", func(c *Config) { c.Listen = "" }, ""},
		{"no trust domain", func(c *Config) { c.TrustDomain = "" }, "trust_domain"},
		{"trust domain with scheme", func(c *Config) { c.TrustDomain = "https://a" }, "trust_domain"},
		{"no state", func(c *Config) { c.State = "" }, "state: name a directory"},
		{"nothing to serve", func(c *Config) { c.Listen, c.Admin = "", "" }, "nothing to serve"},
		{"listen", func(c *Config) { c.Listen = "8443" }, "listen: address"},
		{"admin over TCP", func(c *Config) { c.Admin = "127.0.0.1:1" }, "unix socket only"},
		{"long socket", func(c *Config) { c.Admin = "unix:///" + strings.Repeat("x", 120) }, "at most 107 bytes"},
		{"pilot", func(c *Config) { c.Pilot = "pilot" }, "pilot: address"},
		{"short life", func(c *Config) { c.WorkloadTTL = config.Duration(time.Second) }, "workload_ttl: 1s is outside 10s to 24h0m0s"},
		{"life beyond the maximum", func(c *Config) { c.ServiceTTL = config.Duration(48 * time.Hour) }, "service_ttl: 48h0m0s is outside"},
		{"maximum beyond the root", func(c *Config) { c.RootTTL = config.Duration(2 * time.Hour) }, "max_ttl: 24h0m0s is outside"},
		{"negative skew", func(c *Config) { c.ClockSkew = -1 }, "clock_skew"},
		{"token", func(c *Config) { c.JoinTokenTTL = 0 }, "join_token_ttl"},
		{"database", func(c *Config) { c.Ledger.Postgres = "postgres://writ@localhost/writ" }, ""},
		{"database in clear text", func(c *Config) { c.Ledger.Postgres = "postgres://writ@db.example/writ" }, "ledger.postgres: db.example is another machine"},
		{"password without a database", func(c *Config) { c.Ledger.PasswordFile = "/p" }, "ledger.password_file"},
		{"no rate", func(c *Config) { c.Limits.CallerRate = 0 }, "limits.caller_rate: 0 is outside"},
		{"wait", func(c *Config) { c.PlacementWait = config.Duration(time.Hour) }, "placement_wait"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := DefaultConfig()
			c.State, c.Listen, c.Admin = "/s", "127.0.0.1:8443", "unix:///s/admin.sock"
			tc.change(&c)
			err := c.Validate()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
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

func TestFileAndFlags(t *testing.T) {
	c := DefaultConfig()
	text := "trust_domain: a.example\nstate: /s\nadmin: unix:///s/a\nworkload_ttl: 10s\nlog: {level: debug}\n"
	if err := config.Load(file(t, text), &c); err != nil {
		t.Fatal(err)
	}
	fs := flag.NewFlagSet("writ-ca", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	c.Flags(fs)
	if err := fs.Parse([]string{"-trust-domain", "b.example", "-workload-ttl", "20s"}); err != nil {
		t.Fatal(err)
	}
	if c.TrustDomain != "b.example" || c.State != "/s" || c.WorkloadTTL.D() != 20*time.Second || c.ServiceTTL.D() != time.Hour || c.Log.Level != "debug" {
		t.Fatalf("got %+v", c)
	}
	if err := config.Load(file(t, "workload_tl: 10s"), &c); err == nil || !strings.Contains(err.Error(), `f.yaml:1: unknown key "workload_tl"`) {
		t.Fatalf("got %v", err)
	}
}
