// Package pglog is the ledger of several authorities at once, in PostgreSQL. None of
// them leads: each commits when it has something to commit, and one that dies takes
// nothing with it.
//
// A batch (package group) is one transaction, which locks the one row of the table
// writ_ledger_head: there is the size of the log and the edge of its hash tree. It
// then looks at the versions of the documents that the batch's changes depend on,
// adds the entries, puts and deletes the documents, and moves the head. So changes of
// all replicas are in one order, and each finds all earlier ones.
//
// Who watches documents is told by LISTEN and NOTIFY: an authority with nothing to do
// asks the database for something every 10 seconds.
//
// While the database is away, Commit and what reads return errors that wrap
// ledger.ErrUnavailable, and watchers wait; it comes back by itself. A replica that
// hangs in the middle of a transaction loses it to the database's own timeout after
// two seconds, so that it holds up nobody for longer.
//
// Nothing is acknowledged that the server does not have on its disk: a session turns
// synchronous_commit on where it is off, and a server with fsync off is refused. What
// its standbys have is the server's own configuration (synchronous_standby_names);
// after a failover to a standby that was behind, the next start of an authority finds
// the ledger shorter than its checkpoint.
//
// Security: who can write to the tables can stop everything, and can append to the log
// what a replica would append. What he alters is found by whoever reads it: an entry
// has its hash, a document is believed only if the entry of its version names it, and
// the head of the log is compared with a checkpoint at each start. What he deletes from
// the table of documents without an entry, a revocation for example, is gone until
// somebody compares it with the log. Who can read the tables reads the documents, among
// them the hashes of join tokens. The password is read from a file and is in no message.
package pglog
