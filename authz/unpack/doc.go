// Package unpack reads bundles of OPA as OPA's own reader does, without its starting to
// parse all modules at the same moment, which leaves no processor to anybody else in the
// process, and without parsing again modules none of which has changed.
//
// The main entries are [Read] and [ReadArchive]. They go through the modules one after the
// other, on the goroutine of their caller, put a line with the module's package in the place
// of each and have OPA's reader read that; then they put modules and texts back.
//
// Guarantees: what comes out is what OPA's reader makes of the same files, byte for byte
// and module for module, signatures verified; what is unusual, and what is wrong, is left
// to OPA's reader as it is, whose errors are those that are reported.
//
// [Read] does not bound how much an archive unpacks to. [ReadArchive] and [Check] do.
package unpack
