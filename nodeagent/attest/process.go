package attest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is held by a pidfd: while the pidfd has not become readable, the
// process id means this process.
type process struct {
	pid   int32
	start uint64 // in clock ticks since boot, proc_pid_stat(5) field 22
	file  *os.File
}

// openProcess takes hold of a running process.
func openProcess(pid int32) (*process, error) {
	// Non-blocking (Linux 5.10), so that Go's poller waits for it and no thread.
	fd, err := unix.PidfdOpen(int(pid), unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	start, err := startTime(pid)
	if err != nil || exited(fd) {
		_ = unix.Close(fd)
		return nil, errors.Join(fmt.Errorf("process %d has ended", pid), err)
	}
	return &process{pid: pid, start: start, file: os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(int(pid)))}, nil
}

// openSame is openProcess for the process that had an id when it had begun at start.
func openSame(pid int32, start uint64) (*process, error) {
	p, err := openProcess(pid)
	if err == nil && p.start != start {
		p.close()
		return nil, errOtherProcess
	}
	return p, err
}

// wait returns nil when the process has ended, an error after close.
func (p *process) wait() error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool { return exited(int(fd)) })
}

func (p *process) close() { _ = p.file.Close() }

// exited tells whether the process of a pidfd has ended; if that cannot be told
// it is taken for ended.
func exited(pidfd int) bool {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err != nil || n > 0
	}
}

// startTime reads when a process was started.
func startTime(pid int32) (uint64, error) {
	data, err := readProc(unix.AT_FDCWD, procRoot+"/"+strconv.Itoa(int(pid))+"/stat")
	if err != nil {
		return 0, err
	}
	return parseStartTime(data)
}

// parseStartTime takes field 22 of /proc/PID/stat. The second field, the command,
// is in parentheses and may contain anything, parentheses included.
func parseStartTime(stat []byte) (uint64, error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, errors.New("process status has no command")
	}
	fields := bytes.Fields(stat[end+1:])
	const index = 22 - 3 // the first field after the command is number 3
	if len(fields) <= index {
		return 0, fmt.Errorf("process status has %d fields after the command, want more than %d", len(fields), index)
	}
	return strconv.ParseUint(string(fields[index]), 10, 64)
}

// bootID tells boots apart, because start times count from boot.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// overflow is what the kernel reports for users ("uid") or groups ("gid") that
// have no name in this user namespace (user_namespaces(7)): many different ones
// look like this one.
func overflow(of string) uint32 {
	const usual = 65534
	data, err := os.ReadFile("/proc/sys/kernel/overflow" + of)
	if err != nil {
		return usual
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32)
	if err != nil {
		return usual
	}
	return uint32(v)
}

// pin gives the start time of the process that a connection comes from, 0 if
// that cannot be told for certain.
func pin(conn syscall.Conn, pid int32) uint64 {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	fd := -1
	// SO_PEERPIDFD (Linux 6.5) names the process that connected even if its id
	// has been given to another since; before, that gap is open for the time
	// between connect and accept.
	if err := raw.Control(func(s uintptr) { fd, err = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD) }); err != nil {
		return 0
	}
	if err != nil {
		if !errors.Is(err, unix.ENOPROTOOPT) {
			return 0
		}
		if fd, err = unix.PidfdOpen(int(pid), 0); err != nil {
			return 0
		}
	}
	defer func() { _ = unix.Close(fd) }()
	start, err := startTime(pid)
	if err != nil || exited(fd) {
		return 0
	}
	return start
}
