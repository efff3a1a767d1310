// Package relay carries each Envoy's aggregated discovery stream to pilot and
// back. Pilot sees the node id that the caller was attested to have, whatever it
// says itself. What the Envoy acknowledges is kept (package lastgood), and when
// pilot cannot be reached a new stream is answered from that:
//
//   - An Envoy without configuration gets all that was kept; one that has some
//     keeps what it has and gets only what it newly asks for. Nothing is taken
//     away from it.
//   - Pilot is tried all the while. When it is back the stream is ended, and the
//     Envoy connects again and goes live. A stream on which nothing was sent yet
//     goes live as it is.
//   - When pilot goes away in the middle of a stream the stream is ended too.
//
// Frames pass unchanged but for the node and one thing: a resource that the
// Envoy says it has in a version that is not kept here is given to pilot with the
// version "unknown-to-agent", so that pilot sends it once more and it can be kept.
//
// Only resources of Envoy's own types pass: the types by which pilot configures
// the services of Writ are not for workloads.
//
// Protocol: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
package relay
