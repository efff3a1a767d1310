// Package keysource gets the keys of token issuers (JSON Web Key Sets, RFC 7517) from
// where RequestAuthentications say. Keeper.Set tells it which places there are,
// Keeper.Run looks at each of them again and again, Keeper.Refetch has it look at once
// because somebody met a key that is not known, and Keeper.Sets gives what is in force.
//
// What was good last stays in force whatever becomes of its server, and over a restart.
// Each place has its own rhythm: one that is dead or slow delays no other. A place is
// looked at when its answer says that it is old (Cache-Control, within 10 s and 20 min), or
// after 5 min, or 10 s on this machine; after a failure again after a second, twice as
// late each time up to a minute, with jitter; and for the sake of an unknown key at once,
// but at most once a second. Of a place whose keys change all the time the first changes
// come into force at once, then one a minute, with a few more for unknown keys.
//
// A set is taken as a whole or not at all. Taken are the keys by which a signature can
// be verified safely (package jwks): no symmetric ones, each bound to its algorithm. They
// are written anew, in one order, so that every reader reads the same and a server that
// only writes them otherwise changes nothing. Package fetch says what may be fetched from;
// redirects are not followed.
package keysource
