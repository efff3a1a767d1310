// Package jwtsvid is the authority for JWT-SVIDs: keys that sign, the schedule by
// which they follow each other, and the tokens themselves.
//
// A key is published before it signs and stays published for as long as a token of
// its may be valid:
//
//	prepared ── lead ──► signs ── life ──► retired ── longest token ──► gone
//
// The schedule goes by what has happened and not by the clock alone: a key that was
// prepared late, because the authority was down, signs late, and the one before it
// signs until then. Keys outlive the process; a restart changes nothing.
package jwtsvid
