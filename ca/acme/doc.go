// Package acme gives certificates for DNS names to servers outside the mesh, by ACME
// (RFC 8555), through smallstep's ACME provisioner. Open is the way in.
//
// smallstep's part is the protocol: JWS, accounts, orders, challenges. Ours is what
// stands around it:
//
//   - Before it: sizes, kinds of keys, certificate requests and the rate of each
//     address are checked (request.go, server.go), because what it parses comes from
//     strangers.
//   - Below it: its database is the authority's ledger (database.go). An order with
//     its authorizations and challenges is one document, which is changed on condition
//     of its version, so that any number of authorities over one ledger serve the same
//     clients. A nonce is good once for whatever changes anything (nonce.go).
//   - Behind it: a certificate is laid out, signed and recorded by the authority like
//     every other one, together with the order in one change (issue.go). Of what
//     smallstep would sign only the key and the DNS names are used.
//   - Beside it: where validation may connect to is decided at the socket, after names
//     were resolved (validator.go, addresses.go).
//
// Guarantees: a certificate of this package has DNS names that are allowed to its
// account at that moment, no URI, and no client's extended key usage; it is in the
// ledger before its client sees it.
//
// Failure: closed. While the ledger is away nothing is validated or issued, and
// clients get 503.
//
// Not here: key rollover of accounts (smallstep answers 501), CAA records, OCSP.
package acme
