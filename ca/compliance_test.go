package ca

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/rpc"
)

// TestCompliancePolicy: with pqc the authority takes no connection whose keys a quantum
// computer could find out; without it prefers such and takes others.
func TestCompliancePolicy(t *testing.T) {
	t.Parallel()
	for _, policy := range []rpc.CompliancePolicy{"", "pqc"} {
		h := start(t, func(c *Config) { c.CompliancePolicy = policy })
		for _, tc := range []struct {
			offer []tls.CurveID
			want  tls.CurveID // 0: refused
		}{
			{nil, tls.X25519MLKEM768},
			{[]tls.CurveID{tls.X25519MLKEM768}, tls.X25519MLKEM768},
			{[]tls.CurveID{tls.X25519}, map[rpc.CompliancePolicy]tls.CurveID{"": tls.X25519}[policy]},
		} {
			conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "unix", strings.TrimPrefix(h.config.Listen, "unix://"), &tls.Config{
				CurvePreferences: tc.offer, NextProtos: []string{"h2"}, InsecureSkipVerify: true, //nolint:gosec // who answers is not what this test is about
			})
			if (err == nil) != (tc.want != 0) {
				t.Errorf("policy %q, offered %v: %v", policy, tc.offer, err)
			}
			if err == nil {
				if got := conn.ConnectionState().CurveID; got != tc.want {
					t.Errorf("policy %q, offered %v: %s", policy, tc.offer, got)
				}
				_ = conn.Close()
			}
		}
	}
	c := DefaultConfig()
	c.State, c.Admin, c.CompliancePolicy = "s", "unix:///a", "fips-140-2"
	if err := c.Validate(); err == nil {
		t.Error("another policy was taken")
	}
}
