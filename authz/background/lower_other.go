//go:build !linux

package background

type thread struct{}

// lower does nothing: the priority is that of the process.
func lower() thread { return thread{} }

func (thread) watch() (end func()) { return func() {} }
