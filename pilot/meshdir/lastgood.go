package meshdir

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// lastGoodFile is what is kept of the last good version, so that a reader that
// starts while a file is broken still has that file's last good content.
type lastGoodFile struct {
	// Sum is the SHA-256 of Files as JSON.
	Sum [sha256.Size]byte `json:"sum"`
	// Files maps names (instancesKey among them) to contents.
	Files json.RawMessage `json:"files"`
}

// saveLastGood writes the contents of a version. What it holds may be secret, as
// configuration may.
func saveLastGood(path string, v version) error {
	contents := make(map[string][]byte, len(v))
	for name, f := range v {
		contents[name] = f.data
	}
	files, err := json.Marshal(contents)
	if err != nil {
		return err
	}
	data, err := json.Marshal(lastGoodFile{Sum: sha256.Sum256(files), Files: files})
	if err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

// loadLastGood gives the contents that saveLastGood wrote, nil if there are none.
func loadLastGood(path string) (map[string][]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var f lastGoodFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("it is corrupt: %w", err)
	}
	if sha256.Sum256(f.Files) != f.Sum {
		return nil, errors.New("it is corrupt: its content does not have the hash that it should have")
	}
	var contents map[string][]byte
	if err := json.Unmarshal(f.Files, &contents); err != nil {
		return nil, fmt.Errorf("it is corrupt: %w", err)
	}
	return contents, nil
}

// restore takes up the last good version of an earlier process. A problem is
// told once: the files on disk then count as on a very first read.
func (r *Reader) restore() []Problem {
	contents, err := loadLastGood(r.options.LastGood)
	if err != nil {
		return []Problem{{File: r.options.LastGood, Severity: Warning, Message: "the last good configuration cannot be used, only the files themselves: " + fileProblem(err)}}
	}
	if contents == nil {
		return nil
	}
	v := version{}
	for name, data := range contents {
		if name == instancesKey {
			v[name] = newParser(&r.options, true).parse(instancesName(&r.options), data)
			continue
		}
		v[name] = newParser(&r.options, false).parse(name, data)
	}
	in, mesh, _ := r.settle(v)
	if mesh == nil {
		return nil
	}
	r.good, r.mesh = versionOf(in), mesh
	r.accepted = r.good
	return nil
}

// keep writes the last good version down. That it cannot be written does not
// hold a change back; it is told, because a restart may then lose something.
func (r *Reader) keep() []Problem {
	if r.options.LastGood == "" {
		return nil
	}
	if err := saveLastGood(r.options.LastGood, r.good); err != nil {
		return []Problem{{File: r.options.LastGood, Severity: Warning, Message: "the last good configuration cannot be kept for the next start: " + fileProblem(err)}}
	}
	return nil
}
