package model

import "time"

// RevokedTokens is which JSON Web Tokens are revoked, as far as proxies are told.
type RevokedTokens struct {
	// Remote says that they are too many, and that proxies ask authz about each token
	// instead; the lists are empty then.
	Remote bool
	// IDs and Subjects are values of jti and sub, by issuer.
	IDs, Subjects map[string][]string
	// Issued are bounded to when tokens were issued, or are of whole issuers.
	Issued []RevokedIssue
}

// RevokedIssue is of the tokens of an issuer, or of a subject of it, that were
// issued before a time.
type RevokedIssue struct {
	Issuer string
	// Subject is empty for all of the issuer.
	Subject string
	// Before is the zero time if it does not matter when.
	Before time.Time
}

// Any tells whether there is one.
func (r *RevokedTokens) Any() bool {
	return r.Remote || len(r.IDs)+len(r.Subjects)+len(r.Issued) > 0
}
