// Package etcdstore is the ledger of several authorities that are their own database:
// each runs a member of an etcd cluster in its process, three or five together. None of
// the authorities leads; which member of etcd does is etcd's business and changes by
// itself. As long as more than half of the members are there, changes are made.
//
// etcd is large, so it is in programs that are built with the tag etcd; in others Open
// is an error.
//
// A batch (package group) is one transaction on condition that the head of the log, the
// key state/head, is as it was read: that has the size of the log and the edge of its
// hash tree. If another member was faster, the answer has what is there now, and the
// batch is settled anew. When the answer to a transaction is lost, for example because the
// leader died, it is looked up whether it was made before it is tried again.
//
// Members that were too slow ask for a turn along with the attempt that failed, and those
// that succeed leave them one.
//
// The entries of a batch are one value below entries/; 256 of them, a piece of the hash
// tree, are packed into one compressed value below packs/ when they are complete, and the
// piece's hash is below hashes/. Documents are below state/documents/, each with its
// version. etcd's own history of keys is dropped; the log is the history.
//
// Members talk over mutual TLS 1.3, with certificates of an authority that is for nothing
// else: whoever has one for the name of a member is a member. There is no listener for
// clients of etcd. A commit is on the disks of more than half of the members.
//
// Security: what somebody alters in a member's files etcd finds by its checksums or not
// at all; a document is believed only if the entry of its version names it, and the head
// of the log is compared with a checkpoint at each start.
package etcdstore
