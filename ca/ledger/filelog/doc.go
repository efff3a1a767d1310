// Package filelog is the ledger of one machine: an append-only file of lines.
//
//	<crc> <index> <batch> <entry>[<tab><documents>]\n
//
// crc is the CRC-32C of the rest of the line, in eight hexadecimal digits; index
// counts the entries from 0; batch is the index of the first entry that became
// durable together with this one; entry and documents are JSON (see
// ledger.Record). So the file can be read with grep and jq, and an entry that is
// missing, changed or out of its place is found. What somebody changed who
// computed the checksums anew does not have the root hash of a checkpoint.
//
// Entries that arrive while the disk is busy with earlier ones are written and
// synced together, so that many concurrent issuances share one fdatasync(2).
//
// After a crash the file may end in entries that never became durable, whole or
// in part. Nobody was told of them. They are cut off at the next start and kept
// beside the file with the suffix .torn. Damage anywhere else is an error that
// names the file and the offset: the batch field tells the two apart, because a
// batch begins only once the one before it is durable.
//
// When the disk is full or fails, Commit returns an error that wraps
// ledger.ErrUnavailable, the file is cut back to what is durable, and the next
// call tries again.
//
// In memory are the documents, and of the entries 16 bytes or so for each hundred.
package filelog
