package meshdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Bounds of a mesh directory.
const (
	// maxFileSize is the largest configuration file, in bytes.
	maxFileSize = 1 << 20
	// maxFiles is how many configuration files a directory may have.
	maxFiles = 10_000
	// maxFolders is how deep folders may be nested.
	maxFolders = 16
)

const tooLarge = "the file is larger than 1 MiB: split it"

// readDir reads the configuration files of a mesh directory by their names,
// relative to it and with slashes. What cannot be read is a problem of that
// file. Hidden files and folders are skipped; symbolic links are followed to
// files within the directory only. The error is about the directory as a whole.
func readDir(dir string) (map[string][]byte, []Problem, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("open mesh directory: %w", err)
	}
	defer root.Close()
	s := scanner{root: root, files: map[string][]byte{}}
	if err := fs.WalkDir(root.FS(), ".", s.visit); err != nil {
		return nil, nil, fmt.Errorf("read mesh directory %s: %w", dir, err)
	}
	return s.files, s.problems, nil
}

type scanner struct {
	root     *os.Root
	files    map[string][]byte
	problems []Problem
}

func (s *scanner) problem(name, format string, args ...any) {
	s.problems = append(s.problems, Problem{File: name, Message: fmt.Sprintf(format, args...)})
}

func (s *scanner) visit(name string, entry fs.DirEntry, err error) error {
	switch {
	case name == "." && err != nil:
		return err
	case name == ".":
		return nil
	case strings.HasPrefix(path.Base(name), "."):
		if entry != nil && entry.IsDir() {
			return fs.SkipDir
		}
		return nil
	case errors.Is(err, fs.ErrNotExist): // removed while we look
		return nil
	case err != nil:
		s.problem(name, "cannot be read: %s", fileProblem(err))
		return nil
	case entry.IsDir():
		if strings.Count(name, "/") >= maxFolders {
			s.problem(name, "folders are nested deeper than %d levels: flatten them", maxFolders)
			return fs.SkipDir
		}
		return nil
	case !isConfiguration(name):
		return nil
	case len(s.files) >= maxFiles:
		s.problem(name, "more than %d configuration files: the rest is not read", maxFiles)
		return fs.SkipAll
	}
	data, err := readBounded(s.root, name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && entry.Type()&fs.ModeSymlink == 0:
	case err != nil:
		s.problem(name, "cannot be read: %s", fileProblem(err))
	default:
		s.files[name] = data
	}
	return nil
}

func readBounded(root *os.Root, name string) ([]byte, error) {
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	if info.Size() > maxFileSize {
		return nil, errors.New(tooLarge)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = errors.New(tooLarge)
	}
	return data, err
}

// named reads a file that an object names. A relative name is of the mesh
// directory: no hidden file or folder, and not out of it, neither by name nor by a
// symbolic link. An absolute one, which Istio's certificates have, is any file but
// one of the mesh itself.
func (o *Options) named(name string) ([]byte, error) {
	root, rel, err := o.locate(name)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return readBounded(root, rel)
}

// locate gives the folder from which an object's file is opened, and its name in it.
func (o *Options) locate(name string) (*os.Root, string, error) {
	if !filepath.IsAbs(name) {
		for part := range strings.SplitSeq(filepath.ToSlash(name), "/") {
			if strings.HasPrefix(part, ".") && part != "." {
				return nil, "", errors.New("it lies in a hidden folder or outside of the mesh directory")
			}
		}
		if o.folderProblem(filepath.Join(o.Dir, name)) != "" {
			return nil, "", errors.New("it belongs to the mesh itself")
		}
		root, err := os.OpenRoot(o.Dir)
		return root, filepath.Clean(name), err
	}
	if o.folderProblem(name) != "" {
		return nil, "", errors.New("it belongs to the mesh itself")
	}
	target, err := filepath.EvalSymlinks(name)
	if err != nil {
		return nil, "", err
	}
	root, err := os.OpenRoot(filepath.Dir(target))
	return root, filepath.Base(target), err
}
