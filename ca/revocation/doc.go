// Package revocation says what is revoked: certificates by serial number and
// identities by SPIFFE ID, each a document of the ledger, and makes certificate
// revocation lists of them (RFC 5280, section 5). It is pure: what is stored, signed
// and sent, and when, is the authority's affair.
//
// Revoking an identity revokes every certificate that it was issued so far, and the
// authority refuses it new ones; taking it back makes those good again that have not
// expired. A certificate's revocation ends with the certificate. What was ever
// revoked stays in the ledger's log.
package revocation
