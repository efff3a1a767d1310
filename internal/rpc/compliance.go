package rpc

import (
	"crypto/tls"
	"fmt"
)

// CompliancePolicy is what the TLS of connections between Writ's services has to live
// up to, by the names of Istio's COMPLIANCE_POLICY.
type CompliancePolicy string

// The policies. In each TLS is 1.3.
const (
	// anyGroup prefers X25519MLKEM768, and takes a group of before.
	anyGroup CompliancePolicy = ""
	// pqc takes X25519MLKEM768 alone, so that who records a connection today cannot read
	// it with a quantum computer later.
	pqc CompliancePolicy = "pqc"
)

// Validate checks a policy of a configuration file.
func (p CompliancePolicy) Validate() error {
	if p != anyGroup && p != pqc {
		return fmt.Errorf("compliance_policy %q: there is pqc, and nothing", p)
	}
	return nil
}

// Apply makes c live up to the policy.
func (p CompliancePolicy) Apply(c *tls.Config) {
	c.MinVersion = tls.VersionTLS13
	if p == pqc {
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	}
}
