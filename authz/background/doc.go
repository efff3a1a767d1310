// Package background does long work, such as compiling a bundle of hundreds of policies,
// beside requests that are decided in the same process, without their waiting for it.
//
// The main entry is [Run]: the work has a thread of the operating system for itself, with
// a lower priority than the threads that serve (Linux; elsewhere the same one), and Go
// may run one thread more as long as it lasts, so that it takes away no place from
// them. Go's own scheduler knows no priorities: what is in its queues first runs first. Garbage is
// collected afterwards rather than meanwhile, within bounds.
//
// Guarantees: one work at a time in the process; a panic in it is an error of Run. What
// the work starts with go is not meant: that runs as everything else.
package background
