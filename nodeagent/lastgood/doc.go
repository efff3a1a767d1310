// Package lastgood keeps, for each proxy of a node, the newest configuration that
// the proxy has acknowledged, in memory and on disk, so that a proxy that starts
// while pilot is away comes up with it.
//
// Files are written atomically and checksummed (package statefile), a short while
// after a change, so that a burst of changes is one write. A file that is corrupt
// is set aside and counts as no configuration. Secrets are kept in memory only.
package lastgood
