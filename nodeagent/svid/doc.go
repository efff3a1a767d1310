// Package svid obtains and renews the X.509-SVIDs of a node's workloads. A key
// is made in memory when a workload's proxy first asks, and a new one at each
// renewal; it is never written or logged, and it is forgotten when nobody has
// asked for it during half a certificate's life.
//
// Renewal is at half of the remaining life, give or take a tenth of it, or within
// half a minute when another authority signs than the one of the certificate. While
// the authority is away the certificate at hand is served until a new one comes,
// and the authority is asked again with back-off and jitter.
//
// Profile: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md
package svid
