// Package filelog is the ledger of one machine: an append-only file of lines.
//
//	<crc> <index> <batch> <kind> <JSON>\n
//
// crc is the CRC-32C of the rest of the line, in eight hexadecimal digits; index
// counts the records from 0; batch is the index of the first record that became
// durable together with this one; kind is cert (a certificate), token (a join
// token) or join (a certificate and the token that it used up). So the file can
// be read with grep and jq, and a record that is missing, changed or out of its
// place is found.
//
// Records that arrive while the disk is busy with earlier ones are written and
// synced together, so that many concurrent issuances share one fdatasync(2).
//
// After a crash the file may end in records that never became durable, whole or
// in part. Nobody was told of them. They are cut off at the next start and kept
// beside the file with the suffix .torn. Damage anywhere else is an error that
// names the file and the offset: the batch field tells the two apart, because a
// batch begins only once the one before it is durable.
//
// When the disk is full or fails, Record and its like return an error that wraps
// ledger.ErrUnavailable, the file is cut back to what is durable, and the next
// call tries again.
package filelog
