// Package bundle brings policies and data from outside: OPA's bundles over HTTP,
// from OCI registries and from files, with discovery, signatures, status and
// decision logs. All of that is OPA's own code (its plugin manager); this package
// puts it behind a guard and takes from it what decides.
//
// The main entry is [NewManager]; [Manager.Current] is what decides now.
//
// Guarantees: modules and queries are compiled on goroutines of this package or
// of OPA's plugins, never on a request's; a [Snapshot] is immutable and shares
// nothing with OPA's store, so a request that took one sees one revision to its
// end; what does not download, verify, compile or fit stays out, and what was in
// force stays in force. Answers of servers are bounded in size, packed and
// unpacked, in the number of files, and in time; credentials go to the host that
// they were configured for and nowhere else.
//
// It does not protect from what a bundle says: whoever may sign, or if nothing is
// signed whoever serves, decides. See docs/security/authz.md.
package bundle
