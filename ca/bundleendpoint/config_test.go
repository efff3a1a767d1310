package bundleendpoint_test

import (
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/bundleendpoint"
	"github.com/writ-mesh/writ/internal/config"
)

func TestValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*bundleendpoint.Config)
		want   string
	}{
		"nowhere": {func(*bundleendpoint.Config) {}, ""},
		"spiffe":  {func(c *bundleendpoint.Config) { c.Listen = "127.0.0.1:8444" }, ""},
		"web": {func(c *bundleendpoint.Config) {
			c.Listen, c.Profile, c.CertFile, c.KeyFile = "127.0.0.1:8444", "https_web", "c", "k"
		}, ""},
		"no address":           {func(c *bundleendpoint.Config) { c.Listen = "8444" }, "bundle_endpoint.listen"},
		"unknown profile":      {func(c *bundleendpoint.Config) { c.Listen, c.Profile = "127.0.0.1:8444", "http" }, "want https_web or https_spiffe"},
		"web without a key":    {func(c *bundleendpoint.Config) { c.Listen, c.Profile, c.CertFile = "127.0.0.1:8444", "https_web", "c" }, "https_web needs key_file"},
		"spiffe with a key":    {func(c *bundleendpoint.Config) { c.Listen, c.KeyFile = "127.0.0.1:8444", "k" }, "key_file is for https_web"},
		"files and no address": {func(c *bundleendpoint.Config) { c.CertFile = "c" }, "no listen"},
		"no whole seconds": {func(c *bundleendpoint.Config) {
			c.Listen, c.RefreshHint = "127.0.0.1:8444", config.Duration(1500*time.Millisecond)
		}, "whole seconds"},
	} {
		c := bundleendpoint.Default()
		tc.change(&c)
		if err := c.Validate(); tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
