// Package nodeagent is the agent that runs once on each node. It recognizes the
// proxies of the node's workloads, keeps their keys, serves them their secrets
// over SDS, and relays their configuration stream (ADS) to pilot.
//
//   - Who calls is known from the kernel and from pilot's placement, never from
//     what the caller says (package attest).
//   - Keys are made in the agent's memory and leave it only over SDS, to the proxy
//     that they belong to (packages svid and sds).
//   - Configuration that a proxy has acknowledged is kept on disk (package
//     lastgood) and given to a proxy that starts while pilot is away (package
//     relay).
//
// Failure mode. The agent may be killed at any time: proxies keep certificates
// and configuration, reconnect within a second of its return, and get a new
// certificate with a new key; registered processes are found again. Without pilot
// it goes on with the last placement and the last good configuration. Without the
// authority it serves the certificates that it has until they expire, and proxies
// that come new wait. It fails closed: who is not recognized gets nothing.
//
// What it does not do: it does not decide about requests, it is not on the path of
// any, and it does not read the configuration that it relays.
//
// Sources: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol,
// https://github.com/spiffe/spiffe/tree/main/standards
package nodeagent
