// Package spool keeps batches of records until somebody has taken them: each in a
// file of its own, written as a whole, synced and then renamed, so that there is
// no half of one. It is bounded: batches of a lesser class make room for new ones.
//
// Without a folder it keeps them in memory, bounded in the same way.
package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// suffix ends the name of each batch.
const suffix = ".json.gz"

// dirMode and fileMode are for this user alone: records say who called what.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// ErrFull says that a batch found no room: everything that is kept is of its
// class or of a better one.
var ErrFull = errors.New("the spool is full")

// Batch is what is kept together.
type Batch struct {
	// Class is 0 for what goes last; a batch of a higher class makes room first.
	Class int
	// Records is how many records are in it.
	Records int

	sequence uint64
	size     int64
	data     []byte // in memory only
}

// Spool is safe for concurrent use.
type Spool struct {
	dir string
	max int64

	mu       sync.Mutex
	batches  []Batch // ascending by sequence
	bytes    int64
	sequence uint64
	// journals is the highest number of a journal's file.
	journals uint64
}

// Open finds what an earlier process left in dir, which it makes if it is not
// there; empty means memory. max bounds the bytes of all batches.
func Open(dir string, maxBytes int64) (*Spool, error) {
	s := &Spool{dir: dir, max: maxBytes}
	if dir == "" {
		return s, nil
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	} else if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("spool: others may write into %s (mode %#o), and could remove or make up what was decided: chmod 700", dir, info.Mode().Perm())
	}
	if err := atomicfile.Sweep(dir); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	for _, e := range entries {
		b, ok := parse(e.Name())
		if !ok {
			continue // somebody else's
		}
		info, err := e.Info()
		if err != nil {
			return nil, fmt.Errorf("spool: %w", err)
		}
		if !info.Mode().IsRegular() {
			continue // a pipe would hold up who reads it
		}
		b.size = info.Size()
		s.batches = append(s.batches, b)
		s.bytes += b.size
		s.sequence = max(s.sequence, b.sequence)
	}
	slices.SortFunc(s.batches, func(a, b Batch) int {
		if a.sequence < b.sequence {
			return -1
		}
		return 1
	})
	return s, nil
}

// name is "<class>-<sequence>-<records>.json.gz".
func (b Batch) name() string {
	return fmt.Sprintf("%d-%016d-%d%s", b.Class, b.sequence, b.Records, suffix)
}

func parse(name string) (Batch, bool) {
	parts := strings.Split(strings.TrimSuffix(name, suffix), "-")
	if len(parts) != 3 || !strings.HasSuffix(name, suffix) {
		return Batch{}, false
	}
	class, err1 := strconv.ParseUint(parts[0], 10, 8)
	sequence, err2 := strconv.ParseUint(parts[1], 10, 63)
	records, err3 := strconv.ParseUint(parts[2], 10, 31)
	b := Batch{Class: int(class), Records: int(records), sequence: sequence}
	return b, errors.Join(err1, err2, err3) == nil && b.name() == name
}

// Put keeps a batch. What had to make room for it is returned; with [ErrFull] or
// another error the batch is not kept.
func (s *Spool) Put(class, records int, data []byte) (evicted []Batch, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := int64(len(data))
	for len(s.batches) > 0 && s.bytes+size > s.max { // one alone always fits
		i := s.least(class)
		if i < 0 {
			return evicted, ErrFull
		}
		b := s.batches[i]
		if err := s.removeAt(i); err != nil {
			return evicted, err
		}
		evicted = append(evicted, b)
	}
	s.sequence++
	b := Batch{Class: class, Records: records, sequence: s.sequence, size: size}
	if s.dir == "" {
		b.data = data
	} else if err := atomicfile.Write(filepath.Join(s.dir, b.name()), data, fileMode); err != nil {
		return evicted, fmt.Errorf("spool: %w", err)
	}
	s.batches = append(s.batches, b)
	s.bytes += size
	return evicted, nil
}

// least finds the oldest batch of the highest class that may make room for one of
// class: of class 0 none may, of another one those of its own too.
func (s *Spool) least(class int) int {
	at := -1
	for i, b := range s.batches {
		if b.Class >= max(class, 1) && (at < 0 || b.Class > s.batches[at].Class) {
			at = i
		}
	}
	return at
}

// Next gives the batch to take next: the best class first, and in it the oldest.
func (s *Spool) Next() (Batch, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := -1
	for i, b := range s.batches {
		if at < 0 || b.Class < s.batches[at].Class {
			at = i
		}
	}
	if at < 0 {
		return Batch{}, false
	}
	return s.batches[at], true
}

// Read gives the content of a batch; fs.ErrNotExist if it had to make room.
func (s *Spool) Read(b Batch) ([]byte, error) {
	if s.dir == "" {
		return b.data, nil
	}
	return os.ReadFile(filepath.Join(s.dir, b.name()))
}

// SetAside leaves a batch to the next process, because it cannot be read. It counts among
// the bytes.
func (s *Spool) SetAside(b Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batches = slices.DeleteFunc(s.batches, func(have Batch) bool { return have.sequence == b.sequence })
}

// Remove forgets a batch. It is no error if it had to make room meanwhile.
func (s *Spool) Remove(b Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.batches, func(have Batch) bool { return have.sequence == b.sequence })
	if i < 0 {
		return nil
	}
	return s.removeAt(i)
}

func (s *Spool) removeAt(i int) error {
	b := s.batches[i]
	if s.dir != "" {
		// Not synced: after a loss of power it may be sent once more.
		if err := os.Remove(filepath.Join(s.dir, b.name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("spool: %w", err)
		}
	}
	s.batches = slices.Delete(s.batches, i, i+1)
	s.bytes -= b.size
	return nil
}

// Bytes is the size of all that is kept.
func (s *Spool) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}
