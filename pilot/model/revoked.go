package model

import "slices"

// Revoked is what the authority has revoked, as far as it is in force.
type Revoked struct {
	// Sequence is the number of the authority's list.
	Sequence uint64
	// Newest is the number of the newest list that revoked something. Unlike Sequence
	// it stays when a revocation is taken back or expires.
	Newest uint64
	// Everybody is the number of the newest list that revoked a whole authority, after
	// which all connections are made anew. It stays as Newest does.
	Everybody uint64
	// Certificates and Identities are in the order in which they were revoked.
	Certificates []RevokedCertificate
	Identities   []RevokedIdentity
}

// RevokedCertificate is one certificate.
type RevokedCertificate struct {
	// Serial is in lower-case hexadecimal.
	Serial   string
	SPIFFEID string
	// SHA256 is of the certificate in DER, in lower-case hexadecimal.
	SHA256 string
	// Sequence is the number of the list that had it first.
	Sequence uint64
}

// RevokedIdentity stands for all certificates of a SPIFFE ID.
type RevokedIdentity struct {
	SPIFFEID string
	// Sequence is the number of the list that had it first.
	Sequence uint64
}

// Identity tells whether all certificates of a SPIFFE ID are revoked.
func (r *Revoked) Identity(id string) bool {
	return slices.ContainsFunc(r.Identities, func(i RevokedIdentity) bool { return i.SPIFFEID == id })
}

// NewestOf is the number of the newest list that revoked a certificate of one of the
// SPIFFE IDs, or whole authorities, 0 if none did.
func (r *Revoked) NewestOf(ids []string) uint64 {
	newest := r.Everybody
	for _, c := range r.Certificates {
		if c.Sequence > newest && slices.Contains(ids, c.SPIFFEID) {
			newest = c.Sequence
		}
	}
	return newest
}

// Of is the part that concerns some SPIFFE IDs.
func (r *Revoked) Of(ids []string) *Revoked {
	part := &Revoked{Sequence: r.Sequence, Newest: r.Newest}
	for _, c := range r.Certificates {
		if slices.Contains(ids, c.SPIFFEID) {
			part.Certificates = append(part.Certificates, c)
		}
	}
	for _, i := range r.Identities {
		if slices.Contains(ids, i.SPIFFEID) {
			part.Identities = append(part.Identities, i)
		}
	}
	return part
}
