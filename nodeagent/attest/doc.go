// Package attest decides which workload a caller of the node agent's socket is.
// It believes the kernel and pilot, and nothing that the caller says. This is the
// attestation of workloads, by their proxies, to their node agent. How the agent
// itself proves to the authority which node it is, is another matter: the joiners
// of package ca, and package internal/credential on this side.
//
// Facts about a caller are its process id and user id, as the kernel recorded
// them when it connected (SO_PEERCRED, unix(7)). The process is pinned while the
// connection is accepted, by its start time under a pidfd, so that a later
// process with the same id is not taken for it.
//
// A caller is a workload's proxy if
//
//   - its process was registered for the proxy by the machine's supervisor, and
//     pilot places that proxy on this node; or
//   - its user id is the one that the placement of exactly one workload of this
//     node names.
//
// A placement that names a user id holds for registered processes too. Who is
// not known yet is parked for a bounded time, because a proxy may connect before
// its supervisor has registered it, and is refused then with the facts that were
// seen and those that were missing.
//
// Registrations and the placement are kept on disk, so that a restarted agent
// goes on without supervisor and pilot; every registration is verified again.
package attest
