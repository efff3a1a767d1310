// Package ca is Writ's certificate authority. It gives every workload, node agent
// and service of Writ its X.509-SVID, in the profile of the SPIFFE standard, and
// remembers each one.
//
// How an identity is issued: the request is parsed strictly and its signature
// verified (package csr); the caller's right to the identity is checked (a joiner's
// proof, of which the one-time token is the only kind, its own certificate, or the
// placement of the workload on its node); the certificate is laid out (profile),
// signed through smallstep's library (signer), compared with what was ordered
// (profile again), written down durably (ledger), and only then handed out.
//
// Guarantees:
//
//   - A certificate that left the authority is in the ledger, whatever dies.
//   - The root is made once and never overwritten; damage is an error. It is
//     replaced by a rotation (package roots), of which each step is one durable
//     change, and goes on only when everybody concerned has acknowledged it.
//   - A join token buys one certificate for one identity. By whatever proof, only
//     node agents and services of Writ join, and never as the authority itself.
//   - A node gets the workload identities that the mesh places on it, and renews
//     its own; nobody gets an identity of Writ's services but by a token or his
//     own certificate of it.
//
// Failure: closed. If the record cannot be made durable (a full disk), if the
// root is not valid at this time (a wrong clock) or if the right to an identity
// cannot be established, nothing is issued, and the answer says UNAVAILABLE or
// PERMISSION_DENIED. It goes on by itself when the cause is gone. While pilot is
// away the placements known last are in force, also after a restart.
//
// Not here: renewal and keys, which are the node agent's.
//
// Standards: SPIFFE ID, X.509-SVID (https://github.com/spiffe/spiffe/tree/main/standards),
// RFC 5280 (certificates), RFC 2986 (requests).
package ca
