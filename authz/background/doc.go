// Package background does long work, such as compiling a bundle of hundreds of policies,
// beside requests that are decided in the same process, without their waiting for it.
//
// The main entry is [Run]: the work has a thread of the operating system for itself, with
// a lower priority than the threads that serve (Linux; elsewhere the same one), and Go
// may run one thread more as long as it lasts, and a minute longer, so that it takes away no
// place from them. Go's own scheduler knows no priorities: what is in its queues first runs first. Where the
// process may raise a priority again (CAP_SYS_NICE, or RLIMIT_NICE) the thread runs only where
// nothing else does, as long as it gets on so. Garbage is collected afterwards rather than
// meanwhile, within bounds, once for what comes within a moment ([PaceGarbage]).
//
// Guarantees: one work at a time in the process; a panic in it is an error of Run; however
// full the machine is, the work gets a part of it. What the work starts with go is not
// meant: that runs as everything else.
package background
