package kubernetes

import (
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/config"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"good", func(*Config) {}, ""},
		{"no cluster", func(c *Config) { *c = DefaultConfig() }, ""},
		{"namespaces without a cluster", func(c *Config) { c.API = "" }, "kubernetes.api: name the API server"},
		{"in clear text", func(c *Config) { c.API = "http://api:443" }, "want https://host:port"},
		{"with a path", func(c *Config) { c.API = "https://api/x" }, "want https://host:port"},
		{"no token", func(c *Config) { c.TokenFile = "" }, "kubernetes.token_file"},
		{"no namespace", func(c *Config) { c.Namespaces = nil }, "kubernetes.namespaces: name those"},
		{"all and one", func(c *Config) { c.Namespaces = []string{"*", "shop"} }, `"*" stands for all`},
		{"all", func(c *Config) { c.Namespaces = []string{"*"} }, ""},
		{"a path as a namespace", func(c *Config) { c.Namespaces = []string{"../kube-system"} }, "no name of a namespace"},
		{"twice", func(c *Config) { c.Namespaces = []string{"shop", "shop"} }, "there twice"},
		{"another word", func(c *Config) { c.Registrations = "all" }, `"all": want nodes, everywhere or nothing`},
		{"for nothing", func(c *Config) { c.Registrations, c.Secrets = "", false }, "say what the cluster is for"},
		{"no prefix", func(c *Config) { c.SecretPrefix = "" }, "kubernetes.secret_prefix"},
		{"a prefix that no name begins with", func(c *Config) { c.SecretPrefix = "Istio." }, "kubernetes.secret_prefix"},
		{"a prefix with a slash", func(c *Config) { c.SecretPrefix = "a/" }, "kubernetes.secret_prefix"},
		{"another prefix", func(c *Config) { c.SecretPrefix = "writ-" }, ""},
		{"a short life", func(c *Config) { c.SecretTTL = config.Duration(time.Second) }, "kubernetes.secret_ttl"},
		{"a long delay", func(c *Config) { c.SecretDelay = config.Duration(7 * time.Hour) }, "kubernetes.secret_delay"},
	} {
		c := DefaultConfig()
		c.API, c.TokenFile, c.Namespaces, c.Registrations, c.Secrets = "https://api:6443", "/t", []string{"shop"}, onNodes, true
		tc.change(&c)
		if err := c.Validate(); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}
