// Package bootstrap makes the configuration that an Envoy of the mesh starts
// with: who it is, where its node agent is, and its own listeners for
// administration, readiness and Prometheus. Everything else comes over ADS. It is
// pure: equal options give equal bytes.
//
// The node agent does not believe the node id in it; it is there for the Envoy's
// own logs, and so that an honest proxy need not be corrected.
package bootstrap
