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
	// parts are what was read of each, by file; with merging several make a domain.
	parts []*Domain
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
// files claim stays with the one that had it, else with the first by name; with
// merge all of them make it together.
func Load(dir string, previous *Set, merge bool) (*Set, error) {
	files, err := list(dir)
	if err != nil {
		return previous, err
	}
	var c collection
	for _, f := range files {
		domains, err := readFile(f)
		c.add(f, domains, err)
	}
	return c.set(previous, merge)
}

// collection is what was read before it is known what becomes of it.
type collection struct {
	read     []*Domain
	broken   map[string]bool // files
	problems []error
}

// add takes the domains of a file, or that it could not be read.
func (c *collection) add(file string, domains []*Domain, err error) {
	if err != nil {
		c.problems = append(c.problems, err)
		if c.broken == nil {
			c.broken = make(map[string]bool)
		}
		c.broken[file] = true
	}
	c.read = append(c.read, domains...)
}

// set decides which domain is whose.
func (c *collection) set(previous *Set, merge bool) (*Set, error) {
	set := &Set{domains: make(map[string]*Domain)}
	parts := c.read
	if previous != nil {
		for _, d := range previous.parts {
			if c.broken[d.File] {
				parts = append(parts, d)
			}
		}
	}
	switch {
	case merge:
		slices.SortStableFunc(parts, func(a, b *Domain) int { return strings.Compare(a.File, b.File) })
	case previous != nil: // who had a domain keeps it
		slices.SortStableFunc(parts, func(a, b *Domain) int { return previous.claim(b) - previous.claim(a) })
	}
	for _, d := range parts {
		owner := set.domains[d.Name]
		switch {
		case owner == nil:
			set.domains[d.Name] = d
		case merge:
			merged, err := owner.with(d)
			if err != nil {
				c.problems = append(c.problems, err)
				continue
			}
			set.domains[d.Name] = merged
		default:
			c.problems = append(c.problems, fmt.Errorf("%s: domain %q is already at %s", d.At(), d.Name, owner.At()))
			continue
		}
		set.parts = append(set.parts, d)
	}
	return set, errors.Join(c.problems...)
}

// claim is 1 for a domain of the file that had it.
func (s *Set) claim(d *Domain) int {
	if old := s.domains[d.Name]; old != nil && old.File == d.File {
		return 1
	}
	return 0
}

// with is both domains in one.
func (d *Domain) with(more *Domain) (*Domain, error) {
	root := &node{children: maps.Clone(d.root.children), wildcards: slices.Concat(d.root.wildcards, more.root.wildcards)}
	for name, n := range more.root.children {
		if root.children[name] != nil {
			return nil, fmt.Errorf("%s: descriptor %s.%s is there already, domain %q being at %s too", more.At(), d.Name, name, d.Name, d.At())
		}
		if root.children == nil {
			root.children = make(map[string]*node)
		}
		root.children[name] = n
	}
	return &Domain{Name: d.Name, File: d.File, Line: d.Line, root: root, rules: slices.Concat(d.rules, more.rules)}, nil
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
