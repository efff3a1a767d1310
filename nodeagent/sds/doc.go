// Package sds serves a workload's secrets to its Envoy over the secret discovery
// service, in its delta, state-of-the-world and unary variants.
//
// There are three secrets: "default", the workload's key and certificate chain,
// "ROOTCA", the trust bundle, and "FEDERATED", the same with the bundles of other
// trust domains, each for itself. A stream gets those of the workload that its caller
// was attested to be, and only those that it names; any other name is left out
// (state of the world) or answered as removed (delta). A secret that is not there
// yet is answered when it is. Each new version is pushed to every stream that
// subscribes to it, and what the client acknowledges or refuses is counted.
//
// The protocol is in delta.go and sotw.go, which do no I/O.
//
// Protocol: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
package sds
