// Package plans keeps tables that map callers to the numbers of their plan, so that
// what somebody may do is a matter of data, not of policies: a pricing plan, or numbers
// agreed on with one customer.
//
// A [Book] has the tables of a folder and of Redis and follows both: an entry changed
// there holds within a second. A request reads a [Table] that is not changed any more
// ([Handle.Find]): reading, parsing and waiting for Redis happen elsewhere. A table that cannot be
// read, or has anything wrong in it, changes nothing: the last good one stays, for as
// long as the process lives.
//
// A table is made for a million callers: it takes their names and some 20 bytes for
// each, without a pointer that the garbage collector would have to follow.
package plans
