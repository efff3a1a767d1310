// Package revoked holds which JSON Web Tokens (RFC 7519) are revoked, in little
// memory and quick to ask.
//
// The main entry point is [Table.Check]: what a verified token says about itself
// in, the revocation that it falls under out. A revocation is of one token (by
// jti), of all tokens of a subject (by sub), or of all tokens of an issuer; the
// last two may be bounded to tokens that were issued before a time. Each counts
// for one issuer, since the jti and sub of two issuers have nothing to do with
// each other.
//
// A [Table] keeps no strings: 24 bytes for each revocation, of which 16 are of a
// SHA-256, so that a million take less than 64 MiB (BenchmarkTable,
// TestMillionEntries). Two of n revocations are taken for each other with a
// probability of n*n/2^129; nobody who issues tokens can make two on purpose in
// less than 2^64 steps, and would only revoke his own.
//
// It does not verify tokens, and it keeps nothing on disk.
package revoked
