// Package handover gets the key of a new root from the authority that made it to the
// others over the same ledger, through the ledger and without anybody's help.
//
// Each authority has a pair of keys of its own for that, and announces the public one
// (Replica). What makes the announcement good is a signature with the key of the root
// that signs: only who is the authority already is given what it will be next. Who
// makes a root seals its key to everybody who is announced (Parcel); the parcel is made
// along with the change of the roots that needs it.
//
// Sealed is by HPKE (RFC 9180) with X25519 and ML-KEM-768, since a parcel stays in the
// log for good, also for those who have other computers one day. An authority makes
// itself another pair at each start and after each replacement of the root and forgets
// the one before, so that who gets hold of its disk opens no parcel that came earlier.
//
// It reads and writes the one file of the pair; where announcements and parcels are is
// the caller's.
package handover
