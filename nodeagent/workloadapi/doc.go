// Package workloadapi is the SPIFFE Workload API: programs that are no Envoys get
// their X.509-SVID, JWT-SVIDs and the bundles to verify others with, on the same
// socket as SDS and by the same attestation. Who calls is what the kernel says of
// the process; nothing in a request has an effect on it.
//
// Streams are pushed to when a certificate is renewed or a bundle changes. JWT-SVIDs
// are cached for each identity and set of audiences, replaced from half of their
// life on, and handed out until they expire while the authority is away.
package workloadapi
