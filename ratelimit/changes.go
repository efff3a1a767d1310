package ratelimit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	// changesFile is the audit of operators' changes, a line of JSON each, in
	// Config.State. From maxChangesFile bytes on it is moved aside to the name with
	// ".1", in place of the one before.
	changesFile    = "limit-changes.jsonl"
	maxChangesFile = 8 << 20
	// keptChanges are told to operators.
	keptChanges = 200
	// maxChangeLine bounds a line: a name and a reason, escaped.
	maxChangeLine = 128 << 10
)

// change is what an operator did.
type change struct {
	Time    time.Time `json:"time"`
	Actor   string    `json:"actor"`
	What    string    `json:"what"`
	Counter string    `json:"counter"`
	Hits    uint32    `json:"hits,omitempty"`
	Reason  string    `json:"reason"`
	// Remaining is what remained before.
	Remaining uint32 `json:"remaining"`
	// AllRegions says that it was made in the other regions from here too.
	AllRegions bool `json:"all_regions,omitempty"`
}

// changes is the audit. It is safe for concurrent use.
type changes struct {
	path string // empty keeps it in this process only

	mu   sync.Mutex
	file *os.File
	size int64
	last []change // the oldest first
}

// openChanges opens the audit in a folder, or in this process if that is empty.
func openChanges(dir string) (*changes, error) {
	if dir == "" {
		return &changes{}, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	c := &changes{path: filepath.Join(dir, changesFile)}
	for _, path := range []string{c.path + ".1", c.path} {
		if err := c.read(path); err != nil {
			return nil, fmt.Errorf("audit of changes: %w", err)
		}
	}
	return c, c.open()
}

func (c *changes) open() (err error) {
	c.file, err = os.OpenFile(c.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("audit of changes: %w", err)
	}
	info, err := c.file.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("audit of changes: %w", err), c.file.Close())
	}
	c.size = info.Size()
	return nil
}

// read takes the changes of a file into the list. A line that cannot be read, as the
// last one after a crash, is passed over.
func (c *changes) read(path string) error {
	f, err := os.Open(path) //nolint:gosec // the service's own state
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxChangeLine)
	for lines.Scan() {
		var one change
		if json.Unmarshal(lines.Bytes(), &one) == nil && one.What != "" {
			c.keep(one)
		}
	}
	return lines.Err()
}

func (c *changes) keep(one change) {
	c.last = append(c.last, one)
	if n := len(c.last); n > 2*keptChanges {
		c.last = slices.Delete(c.last, 0, n-keptChanges)
	}
}

// add writes a change down. With an error it is not to be made.
func (c *changes) add(one change) error {
	line, err := json.Marshal(one)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.path != "" {
		if err := c.write(append(line, '\n')); err != nil {
			return err
		}
	}
	c.keep(one)
	return nil
}

func (c *changes) write(line []byte) error {
	if c.moved() {
		if err := c.reopen(); err != nil {
			return err
		}
	}
	if c.size+int64(len(line)) > maxChangesFile {
		if err := os.Rename(c.path, c.path+".1"); err != nil {
			return err
		}
		if err := c.reopen(); err != nil {
			return err
		}
	}
	if c.size > 0 && c.torn() {
		line = append([]byte{'\n'}, line...)
	}
	n, err := c.file.Write(line)
	c.size += int64(n)
	if err != nil {
		return err
	}
	return c.file.Sync()
}

func (c *changes) reopen() error {
	_ = c.file.Close() // each line was synced
	return c.open()
}

// moved says whether the open file is not the one that stands under its name: a program
// moved it aside, or it could not be opened when that was done here.
func (c *changes) moved() bool {
	named, err := os.Stat(c.path)
	if err != nil {
		return true
	}
	open, err := c.file.Stat()
	return err != nil || !os.SameFile(named, open)
}

// torn says whether the file ends in the middle of a line.
func (c *changes) torn() bool {
	f, err := os.Open(c.path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	var last [1]byte
	_, err = f.ReadAt(last[:], c.size-1)
	return err == nil && last[0] != '\n'
}

// list gives the newest changes, the newest first.
func (c *changes) list() []change {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := slices.Clone(c.last[max(0, len(c.last)-keptChanges):])
	slices.Reverse(out)
	return out
}

func (c *changes) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return nil
	}
	return c.file.Close()
}
