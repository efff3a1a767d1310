package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Journal has what is not in a batch yet in files of lines, so that it outlives the
// process, though not the machine: it is given to the kernel by write and not synced,
// for a batch follows soon. One goroutine writes, everything that has come together
// meanwhile at once. A file is removed when all its lines are in batches.
//
// It is safe for concurrent use.
type Journal struct {
	dir string
	// failed is told of what cannot be written.
	failed func(error)
	poked  chan struct{}

	mu   sync.Mutex
	next *Written // nil while nobody waits
	file *journalFile
	// turn says that the lines of the next batch go to another file.
	turn     bool
	sequence uint64
}

// journalFile is made when the first line of it is written.
type journalFile struct {
	path string
	// open and torn, whether its last line is not whole, are the writing goroutine's.
	open *os.File
	torn bool
	// lines that are in no batch, and sealed, whether there will be no more, are
	// guarded by Journal.mu.
	lines  int
	sealed bool
}

// Written are lines that are written by one call, once Wait says so.
type Written struct {
	file *journalFile
	text []byte
	done chan struct{}
	err  error
}

// The names of a journal's files: "journal-<number>.jsonl".
const (
	journalPrefix = "journal-"
	journalSuffix = ".jsonl"
)

// maxUnwritten bounds the lines that wait for the disk, in bytes.
const maxUnwritten = 4 << 20

// The errors of [Written.Wait] and [Journal.Append].
var (
	errLate    = errors.New("it is not written yet")
	errTooMuch = fmt.Errorf("more than %d bytes wait for the disk", maxUnwritten)
)

// Journal gives the spool's journal; nil if the spool is in memory. There is one at
// a time, and [Spool.Left] is called before it.
func (s *Spool) Journal(failed func(error)) *Journal {
	if s.dir == "" {
		return nil
	}
	j := &Journal{dir: s.dir, failed: failed, poked: make(chan struct{}, 1), sequence: s.journals}
	j.file = j.another()
	return j
}

// another is called with the lock, or before there is anybody else.
func (j *Journal) another() *journalFile {
	j.sequence++
	return &journalFile{path: filepath.Join(j.dir, journalName(j.sequence))}
}

// Append has a line, which has no end of its own, written soon.
func (j *Journal) Append(line []byte) (*Written, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.next == nil {
		j.next = &Written{file: j.file, done: make(chan struct{})}
	}
	if len(j.next.text)+len(line) > maxUnwritten {
		return nil, errTooMuch
	}
	j.next.text = append(append(j.next.text, line...), '\n')
	j.file.lines++
	j.poke()
	return j.next, nil
}

func (j *Journal) poke() {
	select {
	case j.poked <- struct{}{}:
	default:
	}
}

// Wait waits at most so long until the lines are the kernel's.
func (w *Written) Wait(most time.Duration) error {
	if most > 0 {
		t := time.NewTimer(most)
		defer t.Stop()
		select {
		case <-w.done:
			return w.err
		case <-t.C:
		}
	}
	select { // a process that was not let run finds both
	case <-w.done:
		return w.err
	default:
		return errLate
	}
}

// Turn says that a batch is made of what was appended, so that it is good to go on in
// another file.
func (j *Journal) Turn() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.turn = true
	j.poke()
}

// Release says that one line of each is in a batch, or needed no more.
func (j *Journal) Release(lines []*Written) {
	var gone []*journalFile
	j.mu.Lock()
	for _, w := range lines {
		if w.file.lines--; w.file.done() {
			gone = append(gone, w.file)
		}
	}
	j.mu.Unlock()
	for _, f := range gone {
		j.remove(f)
	}
}

// done says that nobody needs the file. It is called with the lock, and true once.
func (f *journalFile) done() bool { return f.sealed && f.lines == 0 }

// remove is called without the lock: a disk may take its time, and who appends has not
// to wait for it.
func (j *Journal) remove(f *journalFile) {
	if err := os.Remove(f.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		j.failed(fmt.Errorf("journal: %w", err))
	}
}

// Run writes until ctx ends, and then what there is.
func (j *Journal) Run(ctx context.Context) {
	for {
		select {
		case <-j.poked:
			j.step()
		case <-ctx.Done():
			j.Turn()
			j.step()
			return
		}
	}
}

// step writes what has come together, and ends the file if that is asked for.
func (j *Journal) step() {
	j.mu.Lock()
	w, f := j.next, j.file
	j.next = nil
	turn := j.turn && (w != nil || f.open != nil || f.lines > 0)
	j.turn = false
	if turn {
		j.file = j.another()
	}
	j.mu.Unlock()
	if w != nil {
		w.err = f.write(w.text)
		w.text = nil
		close(w.done)
		if w.err != nil {
			j.failed(fmt.Errorf("journal: %w", w.err))
		}
	}
	if !turn {
		return
	}
	if f.open != nil {
		_ = f.open.Close() // what was written is the kernel's already
	}
	j.mu.Lock()
	f.sealed = true
	done := f.done()
	j.mu.Unlock()
	if done {
		j.remove(f)
	}
}

func (f *journalFile) write(text []byte) (err error) {
	if f.open == nil {
		if f.open, err = os.OpenFile(f.path, os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY, fileMode); err != nil {
			f.open = nil
			return err
		}
	}
	if f.torn {
		text = append([]byte{'\n'}, text...)
	}
	n, err := f.open.Write(text)
	f.torn = n > 0 && text[n-1] != '\n' || n == 0 && f.torn
	return err
}

// Left is a journal that an earlier process left.
type Left struct {
	// Size is in bytes.
	Size int64

	path string
}

// Left finds the journals that earlier processes left, the oldest first. It is called
// once, before there is a journal of this process.
func (s *Spool) Left() ([]Left, error) {
	if s.dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	var left []Left
	for _, e := range entries { // sorted by name
		number, ok := journalNumber(e.Name())
		if !ok {
			continue
		}
		s.journals = max(s.journals, number) // whatever it is, the name is taken
		if !e.Type().IsRegular() {           // a pipe would hold up who reads it
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, fmt.Errorf("spool: %w", err)
		}
		left = append(left, Left{info.Size(), filepath.Join(s.dir, e.Name())})
	}
	return left, nil
}

// Take gives take a journal, which is removed when take has returned nil, and is kept if
// not.
func (s *Spool) Take(l Left, take func(io.Reader) error) error {
	f, err := os.Open(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // somebody removed it
	}
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	defer f.Close()
	if err := take(f); err != nil {
		return fmt.Errorf("spool: %s: %w", l.path, err)
	}
	if err := os.Remove(l.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

func journalNumber(name string) (uint64, bool) {
	text, ok := strings.CutPrefix(name, journalPrefix)
	text, ok2 := strings.CutSuffix(text, journalSuffix)
	number, err := strconv.ParseUint(text, 10, 63)
	return number, ok && ok2 && err == nil && journalName(number) == name
}

func journalName(number uint64) string {
	return fmt.Sprintf("%s%016d%s", journalPrefix, number, journalSuffix)
}
