// Package stoptest kills programs under test at each of their steps: just before a
// system call that alters something, as kill -9 does. The program is the one that is
// shipped; the kernel asks the test before each call (SECCOMP_RET_USER_NOTIF).
//
// A test binary that uses it calls [Become] first of all in its TestMain.
package stoptest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/writ-mesh/writ/internal/proctest"
)

// asStopped is the first argument that makes the test binary have the kernel ask, at
// the socket that follows, before each system call that alters something, and then be
// the program that follows. So the program has no point at which it can be made to
// fail: it is the one that is shipped, and its test sees each of its steps.
const asStopped = "stopped"

// Become makes the test binary the program that [Stops.Start] started it for; then it
// does not return.
func Become() {
	if len(os.Args) > 3 && os.Args[1] == asStopped {
		beStopped(os.Args[2], os.Args[3:])
	}
}

// altering are the system calls that change what is on disk or tell somebody of it;
// openat(2) besides, if it creates a file.
func altering() []uint32 {
	return []uint32{
		unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2,
		unix.SYS_UNLINKAT, unix.SYS_MKDIRAT,
	}
}

// The parts of linux/seccomp.h that package unix lacks.
const (
	offsetOfNumber   = 0
	offsetOfThirdArg = 32
	notifyReceive    = 0xc0502100
	notifySend       = 0xc0182101
	notifyContinue   = 1
)

// notification is struct seccomp_notif, answer is struct seccomp_notif_resp.
type notification struct {
	id         uint64
	pid, flags uint32
	number     int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type answer struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// beStopped does what asStopped says. It does not return.
func beStopped(socket string, program []string) {
	fail := func(what string, err error) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(3)
	}
	conn, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Connect(conn, &unix.SockaddrUnix{Name: socket})
	}
	if err != nil {
		fail("connect to the test", err)
	}
	// The filter is this thread's, and the only thread after exec is this one.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fail("no new privileges", err)
	}
	filter := filterOf(altering())
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		fail("seccomp", errno)
	}
	if err := unix.Sendmsg(conn, []byte{0}, unix.UnixRights(int(fd)), nil, 0); err != nil {
		os.Exit(3) // nothing can be written here
	}
	_ = unix.Close(conn)
	_ = syscall.Exec(program[0], program, os.Environ())
	os.Exit(3)
}

func filterOf(numbers []uint32) []unix.SockFilter {
	const load, equal, anyBit, give = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	out := []unix.SockFilter{{Code: load, K: offsetOfNumber}}
	for i, n := range numbers {
		// To the last instruction: past the other numbers and the four of openat.
		out = append(out, unix.SockFilter{Code: equal, K: n, Jt: uint8(len(numbers) - i - 1 + 4)})
	}
	return append(out,
		unix.SockFilter{Code: equal, K: unix.SYS_OPENAT, Jf: 2},
		unix.SockFilter{Code: load, K: offsetOfThirdArg},
		unix.SockFilter{Code: anyBit, K: unix.O_CREAT | unix.O_TRUNC, Jt: 1},
		unix.SockFilter{Code: give, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: give, K: unix.SECCOMP_RET_USER_NOTIF})
}

// Stop is a moment of a program: just before one of its system calls, the n-th of its
// kind on that file since the test said what it is about.
type Stop struct {
	call, file string
	n          int
}

// String names the moment.
func (s Stop) String() string { return fmt.Sprintf("%s of %s, no. %d", s.call, s.file, s.n) }

const (
	// connection is any socket.
	connection = "a connection"
	// maxAnswers is how many writes to connections are steps: those that follow say
	// nothing more of what is on disk.
	maxAnswers = 4
)

// Stops sees the system calls of a program.
type Stops struct {
	// File gives the name of what is at a path, the same in each run of the program;
	// empty for what nobody can see afterwards, as is all without a path. A part of a
	// temporary file's name that is random is a star in the base that it gets.
	File func(dir, base string) string
	// Synced says of a file whether it matters that it is synced: what a process wrote
	// outlives it, synced or not, so that a death before a sync leaves what one before the
	// next step leaves, unless somebody waits for the sync. Nil is no file.
	Synced func(file string) bool

	mu sync.Mutex
	// counting: the test has said what it is about.
	counting bool
	seen     []Stop
	count    map[Stop]int
	// at is where the program dies.
	at *Stop
}

// CountTo begins to count, and has the program die at a moment, or at none.
func (s *Stops) CountTo(at *Stop) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counting, s.at, s.count, s.seen = true, at, make(map[Stop]int), nil
}

// Met are the moments that came since CountTo.
func (s *Stops) Met() []Stop {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// passes counts a call and tells whether it may go on.
func (s *Stops) passes(call, file string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.counting || file == "" {
		return true
	}
	kind := Stop{call: call, file: file}
	if file == connection && s.count[kind] == maxAnswers {
		return true
	}
	s.count[kind]++
	now := Stop{call, file, s.count[kind]}
	s.seen = append(s.seen, now)
	return s.at == nil || *s.at != now
}

// Start runs a program whose steps s sees.
func (s *Stops) Start(t *testing.T, program ...string) *proctest.Process {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := proctest.Start(t, os.Args[0], append([]string{asStopped, socket}, program...)...)
	received := make(chan error, 1)
	var fd int
	go func() {
		var err error
		fd, err = receiveFD(l)
		received <- err
	}()
	select {
	case err := <-received:
		if err != nil {
			t.Fatal(err)
		}
	case <-p.Done():
		t.Fatalf("the program did not start: %v", p.Wait())
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.serve(fd, p)
		_ = unix.Close(fd)
	}()
	t.Cleanup(func() {
		p.Kill()
		<-ended
	})
	return p
}

func receiveFD(l *net.UnixListener) (int, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return 0, errors.Join(err, errors.New("no file descriptor came"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, errors.Join(err, errors.New("no file descriptor came"))
	}
	return fds[0], nil
}

// serve answers the kernel until the program has ended.
func (s *Stops) serve(fd int, p *proctest.Process) {
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil || poll[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n notification
		if errno := notify(fd, notifyReceive, unsafe.Pointer(&n)); errno != 0 {
			continue // who called died meanwhile
		}
		if !s.passes(s.describe(n)) {
			p.Kill() // as kill -9 does: the call is never made
			return
		}
		a := answer{id: n.id, flags: notifyContinue}
		_ = notify(fd, notifySend, unsafe.Pointer(&a))
	}
}

func notify(fd int, what uintptr, arg unsafe.Pointer) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), what, uintptr(arg))
	return errno
}

// describe names a call and its file; no file means that it does not matter.
func (s *Stops) describe(n notification) (call, file string) {
	descriptor := func() string {
		name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, int32(n.args[0])))
		if err != nil {
			return ""
		}
		return s.fileName(name)
	}
	path := func(arg int) string { return s.fileName(stringAt(n.pid, n.args[arg])) }
	switch n.number {
	case unix.SYS_WRITE, unix.SYS_PWRITE64:
		return "write", descriptor()
	case unix.SYS_FTRUNCATE:
		return "truncate", descriptor()
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		if name := descriptor(); s.Synced != nil && s.Synced(name) {
			return "sync", name
		}
		return "sync", ""
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return "rename", path(3)
	case unix.SYS_UNLINKAT:
		return "remove", path(1)
	case unix.SYS_MKDIRAT:
		return "mkdir", path(1)
	default:
		return "create", path(1)
	}
}

// stringAt reads a string in the memory of a process.
func stringAt(pid uint32, at uint64) string {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return ""
	}
	defer mem.Close()
	buf := make([]byte, 256)
	n, _ := mem.ReadAt(buf, int64(at))
	text, _, _ := strings.Cut(string(buf[:n]), "\x00")
	return text
}

var randomPart = regexp.MustCompile(`^(\..*)\.\d+$`)

// fileName is the same for a file in each run of the program.
func (s *Stops) fileName(name string) string {
	switch {
	case strings.HasPrefix(name, "socket:"):
		return connection
	case !filepath.IsAbs(name):
		return ""
	}
	dir, base := filepath.Split(strings.TrimSuffix(name, "/"))
	if m := randomPart.FindStringSubmatch(base); m != nil {
		base = m[1] + ".*"
	}
	return s.File(filepath.Clean(dir), base)
}

// Shipped builds the program of the folder that the test runs in, as it is built for
// users; what make build has left serves if it is of this source.
func Shipped(t *testing.T, name string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	if data, err := os.ReadFile(filepath.Join("..", "..", "bin", name)); err == nil {
		if err := os.WriteFile(program, data, 0o700); err != nil { //nolint:gosec // it is a program
			t.Fatal(err)
		}
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}
