package background

import "golang.org/x/sys/unix"

const (
	// less is by how much nicer the thread is than the process: it gets about a tenth of
	// what one that serves gets where both want to run, and all of what is left over. It
	// is not less, because collecting garbage has to wait until it has stopped.
	less = 10
	// nicest is the kernel's bound, and niceBase what its call counts down from.
	nicest, niceBase = 19, 20
)

// lower lowers the priority of this thread. If that fails it stays as it is.
func lower() {
	thread := unix.Gettid()
	left, err := unix.Getpriority(unix.PRIO_PROCESS, thread)
	if err != nil {
		return
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, thread, min(niceBase-left+less, nicest))
}
