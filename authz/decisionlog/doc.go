// Package decisionlog keeps one record of each decision and brings them to where
// somebody looks at them.
//
// [Log.Add] takes a record and does not wait for the disk, except for the moment in
// which a refusal is written to a journal, bounded by Options.RefusalWait. Behind it
// records are gathered into batches, compressed, put on disk (package spool) and sent
// to a sink; a batch is removed when the sink has taken it, so that a sink that is
// away costs disk and not memory, and that a record may be sent twice and is known by
// its id then.
//
// What has to go goes in this order, and is counted: decisions that allowed, the
// oldest first; those that allowed although a policy that only observes would have
// refused; and refusals last, of which the oldest stay: with nothing but refusals
// in a full spool no batch is made, the queue fills, and new ones are dropped.
// [Log.Wait] waits instead, which is for reports whose sender can wait.
//
// A killed process loses no refusal: what its journal has that is in no batch becomes
// one when it starts again, and so does what found no room when it was stopped. If the
// spool is full then, journals wait beside it until it is not; together they are no larger
// than it may be. The process loses decisions that allowed: the batch that is being gathered, which is at most
// Options.Flush old, and what is in the queue. Each batch is synced with its folder
// before it counts, the journal is not, so a machine that loses power loses refusals of
// that age too. A batch that is damaged is left out and counted; one that cannot be read is
// left to the next process; one that a sink finds too large (413) is sent in parts.
package decisionlog
