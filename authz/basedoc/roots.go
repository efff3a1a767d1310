package basedoc

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// rootSet are the roots of a bundle's manifest, found without looking at all of them for
// each name in its data.
type rootSet struct {
	all []string
	is  map[string]bool
	// sorted are they without slashes around them.
	sorted []string
}

func newRootSet(roots []string) *rootSet {
	s := &rootSet{all: roots, is: make(map[string]bool, len(roots))}
	for _, root := range roots {
		s.is[root] = true
		s.sorted = append(s.sorted, strings.Trim(root, "/"))
	}
	slices.Sort(s.sorted)
	return s
}

// contain says that a path is one of the roots or below one.
func (s *rootSet) contain(path string) bool {
	if s.is[""] || s.is[path] {
		return true
	}
	for i := range len(path) {
		if path[i] == '/' && s.is[path[:i]] {
			return true
		}
	}
	return false
}

// begin says that a root begins with a path; OPA goes by letters there, not by names.
func (s *rootSet) begin(path string) bool {
	i, _ := slices.BinarySearch(s.sorted, path)
	return i < len(s.sorted) && strings.HasPrefix(s.sorted[i], path)
}

// hold refuses data that a bundle's manifest does not claim, as OPA does.
func (s *rootSet) hold(v value, where string) error {
	if len(s.all) == 1 && s.all[0] == "" {
		return nil
	}
	if !v.isObject() {
		if path := strings.TrimLeft(where, "/."); !s.contain(path) {
			return s.refused(path)
		}
		return nil
	}
	for name, c := range v.members() {
		path := strings.TrimLeft(filepath.ToSlash(filepath.Join(strings.Trim(where, "/"), name)), "/.")
		if s.contain(path) {
			continue
		}
		if !s.begin(path) || !c.isObject() {
			return s.refused(path)
		}
		if err := s.hold(c, path); err != nil {
			return err
		}
	}
	return nil
}

func (s *rootSet) refused(path string) error {
	return fmt.Errorf("manifest roots %v do not permit data at path '/%s' (hint: check bundle directory structure)", s.all, path)
}
