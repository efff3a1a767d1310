package descriptors

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Set is the domains in force.
type Set struct {
	domains map[string]*Domain
}

// Domain finds a domain, nil if there is none of that name.
func (s *Set) Domain(name string) *Domain {
	if s == nil {
		return nil
	}
	return s.domains[name]
}

// Names lists the domains, sorted.
func (s *Set) Names() []string {
	if s == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(s.domains))
}

// Load reads all *.yaml and *.yml files of a folder and its subfolders; names
// that begin with a dot are left out. The set holds every domain that can be
// taken; the error joins one for each file that could not, and of those files'
// domains the set keeps what previous (which may be nil) has. A domain that two
// files claim stays with the one that had it, else with the first by name.
func Load(dir string, previous *Set) (*Set, error) {
	files, err := list(dir)
	if err != nil {
		return previous, err
	}
	set := &Set{domains: make(map[string]*Domain)}
	var problems []error
	var read []*Domain
	broken := make(map[string]bool)
	for _, f := range files {
		domains, err := readFile(f)
		if err != nil {
			problems = append(problems, err)
			broken[f] = true
		}
		read = append(read, domains...)
	}
	if previous != nil {
		for name, d := range previous.domains {
			if broken[d.File] {
				set.domains[name] = d
			}
		}
		for _, d := range read { // who had a domain keeps it
			if old := previous.domains[d.Name]; old != nil && old.File == d.File {
				set.domains[d.Name] = d
			}
		}
	}
	for _, d := range read {
		switch owner := set.domains[d.Name]; {
		case owner == nil:
			set.domains[d.Name] = d
		case owner != d:
			problems = append(problems, fmt.Errorf("%s: domain %q is already at %s", d.At(), d.Name, owner.At()))
		}
	}
	return set, errors.Join(problems...)
}

// fingerprint is a hash of the names and contents of a folder's files.
func fingerprint(dir string) ([sha256.Size]byte, error) {
	files, err := list(dir)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	h := sha256.New()
	for _, f := range files {
		data, err := os.ReadFile(f) //nolint:gosec // the operator's own folder
		_, _ = fmt.Fprintf(h, "%s\x00%d\x00%v\x00", f, len(data), err)
		_, _ = h.Write(data)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

func readFile(path string) ([]*Domain, error) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxFile {
		return nil, fmt.Errorf("%s: has %d bytes, at most %d are read", path, info.Size(), maxFile)
	}
	data, err := os.ReadFile(path) //nolint:gosec // the operator's own folder
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, errors.Unwrap(err))
	}
	return parse(path, data)
}

// list gives the files in a fixed order. Symbolic links are followed to files
// only: a mounted ConfigMap consists of them.
func list(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path != dir && strings.HasPrefix(e.Name(), "."):
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case e.IsDir(), filepath.Ext(path) != ".yaml" && filepath.Ext(path) != ".yml":
			return nil
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("descriptors: %w", err)
	}
	return files, nil
}
