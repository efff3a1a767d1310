package revision

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strconv"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// CorruptError says that a state file could not be read as one and was set aside.
type CorruptError struct {
	Path, Aside string
	Err         error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is not a state file (%v); it was set aside as %s, revisions go on with a new number", e.Path, e.Err, e.Aside)
}

func (e *CorruptError) Unwrap() error { return e.Err }

var numberField = regexp.MustCompile(`"number"\s*:\s*(\d{1,19})`)

// Load reads what Save wrote. A file that is not there is no error. A corrupt one
// is renamed to path.corrupt and reported as *CorruptError, together with a number
// to go on from, as far as one can be made out in it.
func Load(path string) (Saved, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Saved{}, nil
	}
	if err != nil {
		return Saved{}, fmt.Errorf("read the state of revisions: %w", err)
	}
	s, err := parse(data)
	if err == nil {
		return s, nil
	}
	aside := path + ".corrupt"
	if renameErr := os.Rename(path, aside); renameErr != nil {
		return Saved{}, fmt.Errorf("%s is not a state file (%w) and cannot be set aside: %w", path, err, renameErr)
	}
	return salvage(data), &CorruptError{Path: path, Aside: aside, Err: err}
}

func parse(data []byte) (Saved, error) {
	var s Saved
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Saved{}, err
	}
	if d.More() {
		return Saved{}, errors.New("trailing data")
	}
	if s.Number == 0 || s.Hash == "" {
		return Saved{}, errors.New("number or hash is missing")
	}
	return s, nil
}

// salvage finds the number in a damaged file, so that numbers do not start again.
func salvage(data []byte) Saved {
	m := numberField.FindSubmatch(data)
	if m == nil {
		return Saved{}
	}
	n, err := strconv.ParseUint(string(m[1]), 10, 63)
	if err != nil {
		return Saved{}
	}
	return Saved{Number: n}
}

// Save writes s in one step, mode 0600.
func Save(path string, s Saved) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the state of revisions: %w", err)
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("save the state of revisions: %w", err)
	}
	return nil
}
