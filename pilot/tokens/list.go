package tokens

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/revoked"
)

// maxLine bounds a line of the file: three values, whose bytes JSON writes with six
// characters at most, and the rest.
const maxLine = 3*6*maxValue + 4096

// spareLines that say nothing any more do no harm.
const spareLines = 1000

// List is what is revoked. It is safe for concurrent use.
type List struct {
	// Table is in step with the file. Others only read it.
	Table *revoked.Table
	path  string

	mu   sync.Mutex
	file *os.File
	// size is up to where the file is whole, and lines how many lines that are.
	size  int64
	lines int
	// broken is why nothing can be added any more.
	broken error
}

// Open reads a list and goes on with it. The file is made if it is not there. An
// error says what is wrong with it; it is a *DamagedError if its content is.
func Open(path string, now time.Time) (*List, error) {
	l := &List{Table: new(revoked.Table), path: path}
	var err error
	if l.lines, l.size, err = l.load(now); err != nil {
		return nil, err
	}
	if err := l.tidy(); err != nil {
		return nil, err
	}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

// open opens the file to go on behind size; what is there was cut off.
func (l *List) open() (err error) {
	if l.file, err = os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("revoked tokens: %w", err)
	}
	if err := errors.Join(l.file.Truncate(l.size), l.file.Sync()); err != nil {
		return errors.Join(fmt.Errorf("revoked tokens: %w", err), l.file.Close())
	}
	return nil
}

// tidy writes the file anew if most of it says nothing any more.
func (l *List) tidy() error {
	if l.lines <= 2*l.Table.Len()+spareLines {
		return nil
	}
	var data []byte
	lines := 0
	if err := l.Each(func(r Revocation) (err error) {
		lines++
		data, err = line{Revocation: r}.appendTo(data)
		return err
	}); err != nil {
		return err
	}
	if err := atomicfile.Write(l.path, data, 0o600); err != nil {
		return fmt.Errorf("revoked tokens: %w", err)
	}
	l.lines, l.size = lines, int64(len(data))
	return nil
}

// DamagedError says that the file is not what was written.
type DamagedError struct {
	Path string
	// Line is counted from 1.
	Line int
	Err  error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("revoked tokens: line %d of %s is damaged: %v; bring the file back from a backup, or take it away, which forgets every revocation of tokens", e.Line, e.Path, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// load fills the table. It gives the number of lines and how long they are together.
func (l *List) load(now time.Time) (lines int, size int64, err error) {
	lines, size, err = l.read(func(n line) error {
		if n.Undone {
			l.Table.Delete(n.Key())
		} else {
			l.Table.Put(n.Entry())
		}
		return nil
	})
	l.Table.Expire(now)
	return lines, size, err
}

// read gives each line of the file to see.
func (l *List) read(see func(line) error) (lines int, size int64, err error) {
	f, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("revoked tokens: %w", err)
	}
	defer func() { _ = f.Close() }()
	r := bufio.NewReaderSize(f, maxLine)
	for {
		b, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return lines, size, nil // nothing, or a line that was cut off
		}
		lines++
		var n line
		if err == nil {
			n, err = parseLine(b[:len(b)-1])
		}
		if err != nil {
			return lines, size, &DamagedError{Path: l.path, Line: lines, Err: err}
		}
		size += int64(len(b))
		if err := see(n); err != nil {
			return lines, size, err
		}
	}
}

// Each gives every revocation, those of one key once, in the order in which they
// were revoked last. An error of see ends it. What is added meanwhile may be missing.
func (l *List) Each(see func(Revocation) error) error {
	last := map[revoked.Key]int{}
	n := 0
	if _, _, err := l.read(func(r line) error {
		last[r.Key()] = n
		n++
		return nil
	}); err != nil {
		return err
	}
	n = 0
	_, _, err := l.read(func(r line) error {
		n++
		if last[r.Key()] != n-1 || r.Undone {
			return nil
		}
		if _, there := l.Table.Get(r.Key()); !there {
			return nil // expired
		}
		return see(r.Revocation)
	})
	return err
}

// Add revokes all or, with an error, nothing. What is revoked already becomes
// wider, never narrower. It gives what is in force now of each.
func (l *List) Add(rs []Revocation) (now []Revocation, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var data []byte
	before := make(map[revoked.Key]revoked.Entry, len(rs))
	for _, r := range rs {
		if err := r.Check(); err != nil {
			return nil, err
		}
		r = l.widened(r, before)
		if data, err = (line{Revocation: r}).appendTo(data); err != nil {
			return nil, err
		}
		now = append(now, r)
	}
	if err := l.append(data); err != nil {
		return nil, err
	}
	for _, r := range now {
		l.Table.Put(r.Entry())
	}
	l.lines += len(now)
	return now, nil
}

// widened adds what is revoked under the same key, in the table or a moment before,
// and notes it there.
func (l *List) widened(r Revocation, before map[revoked.Key]revoked.Entry) Revocation {
	e := r.Entry()
	if old, there := before[e.Key]; there {
		e = e.Widen(old)
	} else if old, there := l.Table.Get(e.Key); there {
		e = e.Widen(old)
	}
	before[e.Key] = e
	r.IssuedBefore, r.Until = revoked.Time(e.Before), revoked.Time(e.Until)
	return r
}

// Remove takes revocations back, by what they are about, and gives those that were
// there.
func (l *List) Remove(rs []Revocation) (gone []Revocation, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var data []byte
	seen := make(map[revoked.Key]bool, len(rs))
	for _, r := range rs {
		k := r.Key()
		if e, there := l.Table.Get(k); there && !seen[k] {
			seen[k] = true
			r.IssuedBefore, r.Until = revoked.Time(e.Before), revoked.Time(e.Until)
			gone = append(gone, r)
			if data, err = (line{Revocation: r, Undone: true}).appendTo(data); err != nil {
				return nil, err
			}
		}
	}
	if err := l.append(data); err != nil {
		return nil, err
	}
	for _, r := range gone {
		l.Table.Delete(r.Key())
	}
	l.lines += len(gone)
	return gone, l.renew()
}

// renew tidies while the list is in use. The caller holds mu.
func (l *List) renew() error {
	was := l.size
	if err := l.tidy(); err != nil || l.size == was {
		return err
	}
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("revoked tokens: %w", err)
	}
	// The open file is the one that was replaced: nothing may be added to it.
	l.broken = l.open()
	return l.broken
}

// append puts lines on the disk, or leaves the file as it was. The caller holds mu.
func (l *List) append(data []byte) error {
	if l.broken != nil {
		return l.broken
	}
	if len(data) == 0 {
		return nil
	}
	_, err := l.file.WriteAt(data, l.size)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		err = fmt.Errorf("revoked tokens: %w", err)
		// A part may be there; nothing may be written behind it.
		if terr := l.file.Truncate(l.size); terr != nil {
			l.broken = errors.Join(err, terr)
		}
		return err
	}
	l.size += int64(len(data))
	return nil
}

// Close ends the use of the file.
func (l *List) Close() error { return l.file.Close() }
