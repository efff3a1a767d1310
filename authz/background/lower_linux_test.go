package background

import (
	"testing"

	"golang.org/x/sys/unix"
)

// The work's thread is nicer than the others, none of which becomes so by it.
func TestPriority(t *testing.T) {
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	var within, beside int
	err = Run(t.Context(), func() error {
		started := make(chan error)
		go func() {
			var err error
			beside, err = unix.Getpriority(unix.PRIO_PROCESS, 0)
			started <- err
		}()
		if err := <-started; err != nil {
			return err
		}
		within, err = unix.Getpriority(unix.PRIO_PROCESS, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := max(own-less, niceBase-nicest); within != want || beside != own {
		t.Errorf("the kernel says %d for the work, want %d; %d for what it started, want %d", within, want, beside, own)
	}
}
