package etcdstore

import (
	"maps"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	good := Config{
		Name: "a", Peers: map[string]string{"a": "a.example:2380", "b": "10.0.0.2:2380", "c": "[::1]:2380"},
		CertFile: "c.pem", KeyFile: "k.pem", CAFile: "ca.pem",
	}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"good":             {func(*Config) {}, ""},
		"listen":           {func(c *Config) { c.Listen = "[::]:2380" }, ""},
		"two members":      {func(c *Config) { delete(c.Peers, "c") }, "2 members"},
		"nobody":           {func(c *Config) { c.Peers = nil }, "0 members"},
		"not a member":     {func(c *Config) { c.Name = "d" }, `"d" is none of the peers`},
		"no port":          {func(c *Config) { c.Peers["b"] = "b.example" }, "no host:port"},
		"no host":          {func(c *Config) { c.Peers["b"] = ":2380" }, "no host:port"},
		"with a scheme":    {func(c *Config) { c.Peers["b"] = "https://b.example:2380" }, "no host:port"},
		"one twice":        {func(c *Config) { c.Peers["b"] = c.Peers["a"] }, "are both"},
		"bad name":         {func(c *Config) { c.Peers["c=x"] = c.Peers["c"]; delete(c.Peers, "c") }, "no name of a member"},
		"listen on a name": {func(c *Config) { c.Listen = "a.example:2380" }, "want an address and a port"},
		"no certificate":   {func(c *Config) { c.CertFile = "" }, "cert_file"},
		"no key":           {func(c *Config) { c.KeyFile = "" }, "key_file"},
		"no authority":     {func(c *Config) { c.CAFile = "" }, "ca_file"},
	} {
		c := good
		c.Peers = maps.Clone(good.Peers)
		tc.change(&c)
		err := c.Validate()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}
