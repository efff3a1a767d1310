//go:build !linux

package background

// lower does nothing: the priority is that of the process.
func lower() {}
