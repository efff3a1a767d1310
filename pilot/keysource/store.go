package keysource

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// maxFile bounds what is read of a file, in bytes.
const maxFile = 2 * maxEncoded

// store is a folder with a file for each place.
type store struct {
	// dir is empty for none.
	dir string
	log *slog.Logger
}

// file is where a set is kept. Its name is a hash: of any two places it is another.
func (s store) file(key string) string {
	return filepath.Join(s.dir, fmt.Sprintf("%x.json", sha256.Sum256([]byte(key))))
}

func (s store) save(g good) {
	if s.dir == "" {
		return
	}
	data, err := json.Marshal(g)
	if err == nil {
		err = os.MkdirAll(s.dir, 0o700)
	}
	if err == nil {
		err = atomicfile.Write(s.file(g.Place), data, 0o600)
	}
	if err != nil {
		s.log.Error("the keys of a token issuer are not saved; a start while their server is away will not know them", slog.String("place", g.Place), slog.Any("error", err))
	}
}

// load gives what was kept, the zero value if that is nothing, or nothing that can be
// used.
func (s store) load(key string) good {
	if s.dir == "" {
		return good{}
	}
	g, err := s.read(key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("what was kept of a token issuer's keys cannot be used", slog.String("place", key), slog.Any("error", err))
	}
	return g
}

func (s store) read(key string) (good, error) {
	f, err := os.Open(s.file(key))
	if err != nil {
		return good{}, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return good{}, err
	}
	var g good
	if err := json.Unmarshal(data, &g); err != nil {
		return good{}, err
	}
	text, set, err := decode([]byte(g.Keys))
	switch {
	case err != nil:
		return good{}, err
	case g.Place != key || text != g.Keys:
		return good{}, errors.New("it is not what was written there")
	}
	g.Count = len(set.Keys)
	return g, nil
}

// keep removes the files of all other places.
func (s store) keep(keys map[string]bool) {
	if s.dir == "" {
		return
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("kept keys of token issuers cannot be looked through", slog.Any("error", err))
		}
		return
	}
	there := map[string]bool{}
	for key := range keys {
		there[filepath.Base(s.file(key))] = true
	}
	for _, e := range entries {
		if there[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("kept keys of a token issuer cannot be removed", slog.String("file", e.Name()), slog.Any("error", err))
		}
	}
}
