// Package roots decides how the root of a trust domain is replaced while
// everything runs. It is values and rules: State is what the authority remembers,
// Facts are what it knows about everybody else, and the functions say what comes
// next. It reads no clock, keeps no key and does no I/O.
//
// A rotation has these steps, each one change of the State that is made durable
// before it is in force:
//
//	            Begin                 Advance                Advance
//	(one root) ──────► Distributing ──────────► Draining ──────────► (new root)
//	     ▲   Abort │    old signs               new signs
//	     └─────────┘    both trusted            both trusted
//
// Before the new root signs, every holder has acknowledged a bundle with it;
// before the old one is dropped, no certificate of it is in use. Gate names who
// is waited for. A holder is a node agent or a service of Writ that has a
// certificate which has not expired; without one nobody would believe it, so it
// is not waited for. A forced rotation does not wait and records for whom it
// should have.
package roots
