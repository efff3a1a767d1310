// Package token verifies JSON Web Tokens (RFC 7519) against the keys of known
// issuers.
//
// The main entry point is [Verify]: a token, the issuers that may be believed
// and the time in; verified claims or the reason for refusal out. It is pure: no
// key is fetched here (see [Fetcher] for that) and nothing in a token is ever
// taken for a place to get something from.
//
// Guarantees (RFC 8725, best current practices):
//   - only RS, PS, ES and EdDSA signatures; "none" and HMAC do not exist here;
//   - the algorithm has to be one for the key's type and curve, and the key's own
//     "alg" if it has one, so that a public key never becomes an HMAC secret;
//   - "jku", "x5u", "jwk" and "x5c" are not read, "kid" only selects among known
//     keys, a "crit" that is not understood is refused;
//   - tokens and key sets are bounded in size, and JSON with a name twice is
//     refused, so that no two readers see two different tokens.
package token
