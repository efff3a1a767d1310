package plans

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

const (
	// Suffix ends the names of files that are tables.
	Suffix = ".plans"
	// maxTables bounds the tables of a folder.
	maxTables = 100
	// maxFile is the largest file in bytes.
	maxFile = 1 << 30
)

// folder follows the tables of a folder.
type folder struct {
	book *Book
	dir  string
	seen map[string]seen // by table
	full bool            // it was told that there were too many tables
}

// seen is the file that a table was read from last, wrong or not.
type seen struct {
	info os.FileInfo
	good bool
	from *source // the last good one that was read as a whole
}

// same says that this is the file that was seen, unchanged.
func (s seen) same(info os.FileInfo) bool {
	return s.info != nil && os.SameFile(s.info, info) && s.info.ModTime().Equal(info.ModTime()) && s.info.Size() == info.Size()
}

// look reads what has changed.
func (f *folder) look() {
	root, err := os.OpenRoot(f.dir)
	var names []string
	if err == nil {
		defer func() { _ = root.Close() }()
		names, err = tables(root)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		for name := range f.seen {
			f.book.fail(f.book.follow(name), err)
		}
		return
	}
	for name := range f.seen {
		switch {
		case slices.Contains(names, name):
		case f.book.forget(name):
			delete(f.seen, name)
		default:
			f.book.fail(f.book.follow(name), fmt.Errorf("%s%s is gone", name, Suffix))
		}
	}
	for _, name := range names {
		if !slices.Contains(f.book.options.Tables, name) && f.room(name) { // else Redis has it
			f.read(root, name)
		}
	}
}

// room says whether a table may be read. Those that are gone stay in memory while a policy
// names them, so that they count too: whoever may write tables could else have any number kept.
func (f *folder) room(name string) bool {
	if _, known := f.seen[name]; known || len(f.seen) < maxTables {
		return true
	}
	if !f.full {
		f.full = true
		f.book.options.Log.Error("plans are not read: with those that are gone and still named there are too many tables",
			slog.String("table", name), slog.Int("most", maxTables))
	}
	return false
}

// read reads a table if its file has changed.
func (f *folder) read(root *os.Root, name string) {
	h, before := f.book.follow(name), f.seen[name]
	info, err := root.Stat(name + Suffix)
	if err == nil && before.same(info) {
		if before.good {
			f.book.fine(h)
		}
		return
	}
	table, from, info, err := readFile(root, name+Suffix, f.book.options.MaxCallers, before.from)
	f.seen[name] = seen{info: info, good: err == nil, from: from}
	if err != nil {
		f.book.fail(h, err)
		return
	}
	f.book.put(h, table)
}

// tables lists the tables of a folder.
func tables(root *os.Root) ([]string, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	files, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	form := regexp.MustCompile(configpb.PlanName)
	var names []string
	for _, file := range files {
		if name, ok := strings.CutSuffix(file, Suffix); ok && form.MatchString(name) {
			names = append(names, name)
		}
	}
	if len(names) > maxTables {
		return nil, fmt.Errorf("%s: %d tables are more than %d", root.Name(), len(names), maxTables)
	}
	slices.Sort(names)
	return names, nil
}

// readFile reads a table and gives the file that it was read from. What is known of the
// file before may be nil; what is to be known of this one comes back. Symbolic links are
// followed within the folder only: whoever may write a table must not have others
// files read, and their lines told in the log.
func readFile(root *os.Root, file string, maxCallers int, before *source) (*Table, *source, os.FileInfo, error) {
	r, err := root.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would be waited for
	if err != nil {
		return nil, before, nil, &LineError{file, 0, err}
	}
	defer func() { _ = r.Close() }()
	info, err := r.Stat()
	switch {
	case err != nil:
		return nil, before, nil, &LineError{file, 0, err}
	case !info.Mode().IsRegular():
		return nil, before, info, &LineError{file, 0, errors.New("is not a file")}
	case info.Mode().Perm()&0o002 != 0:
		return nil, before, info, &LineError{file, 0, fmt.Errorf("has mode %#o, so that anybody may change it: chmod o-w", info.Mode().Perm())}
	case info.Size() > maxFile:
		return nil, before, info, &LineError{file, 0, fmt.Errorf("has more than %d MiB", maxFile>>20)}
	}
	table, now, err := readText(r, file, maxCallers, before, info.Size())
	if err != nil {
		return nil, before, info, err
	}
	if after, err := r.Stat(); err != nil || !(seen{info: info}).same(after) {
		return nil, before, nil, &LineError{file, 0, errors.New("changed while it was read: replace it by a rename, do not write into it")}
	}
	return table, now, info, nil
}

// readText reads what has changed, and all if that is not enough.
func readText(r io.ReadSeeker, file string, maxCallers int, before *source, size int64) (*Table, *source, error) {
	if table, ok := before.changed(io.LimitReader(r, maxFile), maxCallers); ok {
		return table, before, nil
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, before, &LineError{file, 0, err}
	}
	now, err := parseSource(io.LimitReader(r, maxFile), file, maxCallers, size)
	if err != nil {
		return nil, before, err
	}
	return now.table, now, nil
}

// Check reads all tables of a folder and gives those that are good and what is wrong
// with the others. A folder that is not there has none.
func Check(dir string, maxCallers int) (good map[string]*Table, problems []*LineError) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []*LineError{{".", 0, err}}
	}
	defer func() { _ = root.Close() }()
	names, err := tables(root)
	if err != nil {
		return nil, []*LineError{{".", 0, err}}
	}
	good = make(map[string]*Table, len(names))
	for _, name := range names {
		if good[name], _, _, err = readFile(root, name+Suffix, maxCallers, nil); err != nil {
			delete(good, name)
			problems = append(problems, lines(err)...)
		}
	}
	return good, problems
}

// lines takes an error of readFile apart.
func lines(err error) []*LineError {
	if one := (*LineError)(nil); errors.As(err, &one) {
		if several, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // the join itself
			var out []*LineError
			for _, e := range several.Unwrap() {
				out = append(out, lines(e)...)
			}
			return out
		}
		return []*LineError{one}
	}
	return nil
}
