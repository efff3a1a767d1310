package attest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	procRoot = "/proc"
	// maxProcFile bounds a file of /proc, in bytes.
	maxProcFile = 64 << 10
)

var errOtherProcess = errors.New("the process has ended, and its id is that of another")

// procDir is the directory of one process in /proc, held open: the kernel binds
// it to the process and not to the process id, so that what is read through it is
// of this process or fails.
type procDir struct {
	fd  int
	pid int32
	// start is as Caller.StartTime.
	start uint64
	// parent is the parent's id when the process was looked at last.
	parent int32
}

// openProcDir opens the directory of the process pid that was started at start;
// with start 0 it takes whichever process has the id now.
func openProcDir(pid int32, start uint64) (*procDir, error) {
	fd, err := unix.Open(procRoot+"/"+strconv.Itoa(int(pid)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p := &procDir{fd: fd, pid: pid}
	st, err := p.stat()
	if err == nil && start != 0 && st.start != start {
		err = errOtherProcess
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p.start, p.parent = st.start, st.parent
	return p, nil
}

func (p *procDir) close() { _ = unix.Close(p.fd) }

// read returns the content of one of the directory's files.
func (p *procDir) read(name string) ([]byte, error) { return readProc(p.fd, name) }

// readProc reads a file of /proc. It asks the kernel itself: an os.File would be
// offered to the poller, which has no use for it, and cost twice as much.
func readProc(dir int, name string) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	data := make([]byte, 0, 1024) // enough for most
	for {
		n, err := unix.Read(fd, data[len(data):cap(data)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("%s: %w", name, err)
		case n == 0:
			return data, nil
		}
		if data = data[:len(data)+n]; len(data) > maxProcFile {
			return nil, fmt.Errorf("%s has more than %d bytes", name, maxProcFile)
		}
		if len(data) == cap(data) {
			data = slices.Grow(data, len(data))
		}
	}
}

// link reads one of the directory's symbolic links.
func (p *procDir) link(name string) (string, error) {
	buf := make([]byte, unix.PathMax+64)
	n, err := unix.Readlinkat(p.fd, name, buf)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if n == len(buf) {
		return "", fmt.Errorf("%s is too long", name)
	}
	return string(buf[:n]), nil
}

// procStat is what is used of /proc/PID/stat.
type procStat struct {
	parent int32
	start  uint64
}

func (p *procDir) stat() (procStat, error) {
	data, err := p.read("stat")
	if err != nil {
		return procStat{}, err
	}
	start, err := parseStartTime(data)
	if err != nil {
		return procStat{}, err
	}
	parent, err := parseParent(data)
	return procStat{parent: parent, start: start}, err
}

// parseParent takes field 4 of /proc/PID/stat; see parseStartTime.
func parseParent(stat []byte) (int32, error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0, errors.New("process status has no parent")
	}
	n, err := strconv.ParseInt(string(fields[1]), 10, 32)
	return int32(n), err
}

// credentials are those of a process as they are now.
type procCreds struct {
	uid, gid uint32 // effective
	groups   []uint32
}

func (p *procDir) creds() (procCreds, error) {
	data, err := p.read("status")
	if err != nil {
		return procCreds{}, err
	}
	return parseStatus(data)
}

// parseStatus takes user and groups from /proc/PID/status (proc_pid_status(5)).
func parseStatus(data []byte) (procCreds, error) {
	var c procCreds
	var have int
	for line := range strings.Lines(string(data)) {
		key, rest, _ := strings.Cut(line, ":")
		if key != "Uid" && key != "Gid" && key != "Groups" {
			continue
		}
		var ids []uint32
		for _, f := range strings.Fields(rest) {
			n, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return procCreds{}, fmt.Errorf("process status: %s: %w", key, err)
			}
			ids = append(ids, uint32(n))
		}
		switch {
		case key == "Groups":
			c.groups = ids
		case len(ids) < 2: // real, effective, saved, file system
			return procCreds{}, fmt.Errorf("process status: %s has %d numbers", key, len(ids))
		case key == "Uid":
			c.uid = ids[1]
			have |= 1
		default:
			c.gid = ids[1]
			have |= 2
		}
	}
	if have != 3 {
		return procCreds{}, errors.New("process status has no user and group")
	}
	return c, nil
}
