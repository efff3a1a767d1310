package basedoc

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/loader"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/util"
)

// Data is what files of data are put together to.
type Data struct{ root value }

// add puts a document at a path. JSON's null is as good as no file.
func (d *Data) add(path storage.Path, doc *document) error {
	v := value{doc: doc}
	switch {
	case v.isNull():
		return nil
	case len(path) == 0 && !v.isObject():
		return errNoObject
	}
	root, err := merge(d.root, v.wrapped(path), nil)
	if err == nil {
		d.root = root
	}
	return err
}

// Load reads files and folders with the meaning that the arguments of `opa run` have:
// data goes to where its folder is below the argument, or below the names in front of a
// colon. What is not JSON is read by OPA's loader.
func Load(paths []string, version ast.RegoVersion) (*loader.Result, Data, error) {
	l := &loading{data: Data{root: value{object: &object{}}}, seen: make(map[string]bool)}
	result := &loader.Result{Documents: make(map[string]any), Modules: make(map[string]*loader.RegoFile)}
	for _, arg := range paths {
		prefix, root := loader.SplitPrefix(arg)
		l.prefix, l.root = prefix, filepath.Clean(strings.TrimPrefix(root, "file://"))
		one, err := loader.NewFileLoader().WithRegoVersion(version).Filtered([]string{arg}, l.take)
		if err != nil {
			return nil, Data{}, err
		}
		maps.Copy(result.Modules, one.Modules)
		if err := l.others(one.Documents); err != nil {
			return nil, Data{}, fmt.Errorf("%s: %w", arg, err)
		}
	}
	if len(l.errs) > 0 {
		return nil, Data{}, errors.Join(l.errs...)
	}
	return result, l.data, nil
}

// others takes what OPA's loader has read.
func (l *loading) others(documents map[string]any) error {
	if len(documents) == 0 {
		return nil
	}
	doc, err := fromGo(documents)
	if err != nil {
		return err
	}
	return l.data.add(nil, doc)
}

// loading takes the data files out of what OPA's loader reads.
type loading struct {
	prefix []string
	root   string
	data   Data
	seen   map[string]bool
	errs   []error
}

// take is a loader.Filter: true leaves the file to us.
func (l *loading) take(path string, info os.FileInfo, depth int) bool {
	if info.IsDir() || filepath.Ext(path) != ".json" {
		return false
	}
	where := slices.Clone(l.prefix)
	if depth > 0 {
		rel, err := filepath.Rel(l.root, filepath.Dir(path))
		if err != nil {
			l.errs = append(l.errs, err)
			return true
		}
		if rel != "." {
			where = append(where, strings.Split(filepath.ToSlash(rel), "/")...)
		}
	}
	key := strings.Join(where, "\x00") + "\x01" + filepath.Clean(path)
	if l.seen[key] {
		return true
	}
	l.seen[key] = true
	if err := l.read(path, where); err != nil {
		l.errs = append(l.errs, fmt.Errorf("%s: %w", path, err))
	}
	return true
}

func (l *loading) read(path string, where storage.Path) error {
	text, err := os.ReadFile(path) //nolint:gosec // an argument of the command
	if err != nil {
		return err
	}
	doc, err := parseOr(text, util.UnmarshalJSON)
	if err != nil {
		return err
	}
	return l.data.add(where, doc)
}
