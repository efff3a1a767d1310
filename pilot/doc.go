// Package pilot is the service that reads the configuration of the mesh, turns
// it into numbered revisions and distributes them.
//
// One loop owns everything that changes: it reads the mesh directory when files
// change, translates it for every proxy (packages translate and security, both
// pure), hands the result to the xDS server (package xds) and follows what
// clients acknowledge and refuse (package revision).
//
// Guarantees:
//   - A configuration that cannot be read or translated changes nothing: the last
//     good one stays in force, and the status says what is wrong and where.
//   - A revision that a client refuses before every client had it is taken back
//     from all, and the status names the objects at fault.
//   - A client gets only what is meant for it: a node's agent the proxies that the
//     mesh places on that node, each service its own kinds of resources.
//
// Failure mode: while pilot is away, proxies go on with what they have (the node
// agents keep it on disk for those that start), and nothing changes.
//
// It does not issue identities, decide requests or start processes.
package pilot
