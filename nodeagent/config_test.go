package nodeagent

import (
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/credential"
)

func valid() Config {
	c := DefaultConfig()
	c.Node, c.Pilot = "n1", "127.0.0.1:15012"
	c.Credential = credential.Config{CA: "127.0.0.1:8443", TrustBundle: "/b.pem", TokenFile: "/t", Dir: "/d", TrustDomain: "cluster.local"}
	return c
}

func TestConfig(t *testing.T) {
	c := valid()
	if err := c.Validate(); err != nil {
		t.Fatalf("defaults with what must be given: %v", err)
	}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no node":          {func(c *Config) { c.Node = "" }, "node:"},
		"node is no name":  {func(c *Config) { c.Node = "a/b" }, "node:"},
		"tcp socket":       {func(c *Config) { c.Socket = "127.0.0.1:1" }, "socket:"},
		"relative socket":  {func(c *Config) { c.Socket = "unix://a.sock" }, "socket:"},
		"long socket":      {func(c *Config) { c.Socket = "unix:///" + strings.Repeat("x", 120) }, "socket:"},
		"admin is socket":  {func(c *Config) { c.Admin = c.Socket }, "admin:"},
		"tcp admin":        {func(c *Config) { c.Admin = "127.0.0.1:1" }, "admin:"},
		"mode":             {func(c *Config) { c.SocketMode = "rw" }, "socket_mode:"},
		"executable mode":  {func(c *Config) { c.SocketMode = "0777" }, "socket_mode:"},
		"mode without us":  {func(c *Config) { c.SocketMode = "0066" }, "socket_mode:"},
		"no state":         {func(c *Config) { c.State = "" }, "state:"},
		"no pilot":         {func(c *Config) { c.Pilot = "" }, "pilot:"},
		"no wait":          {func(c *Config) { c.AttestWait = 0 }, "attest_wait:"},
		"no authority":     {func(c *Config) { c.Credential.CA = "" }, "credential:"},
		"bad trust domain": {func(c *Config) { c.Credential.TrustDomain = "A b" }, "credential:"},
	} {
		t.Run(name, func(t *testing.T) {
			c := valid()
			tc.change(&c)
			err := c.Validate()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error that names %q", err, tc.want)
			}
		})
	}
	c = valid()
	c.Admin, c.SocketMode = "", "0666"
	if err := c.Validate(); err != nil {
		t.Fatalf("without supervisor, for all users, shortest life: %v", err)
	}
}
