// Package bundlestatus is the file in which authz tells `writ status` of bundles
// whose newest version is not in force. Who reads it needs nothing else of authz.
package bundlestatus

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// file is in authz's state folder.
const file = "bundle-problems.json"

// Problem says why a bundle's newest version is not in force.
type Problem struct {
	// Policy is "<namespace>/<name>", Source "<file>:<line>" of it.
	Policy string `json:"policy"`
	Source string `json:"source"`
	Reason string `json:"reason"`
	// Since is when the version in force was put in force; zero if none is.
	Since time.Time `json:"since"`
}

// Write replaces what is told in a state folder.
func Write(folder string, list []Problem) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(folder, file), b, 0o600)
}

// Read gives what is told there, nothing if there is no file.
func Read(folder string) ([]Problem, error) {
	b, err := os.ReadFile(filepath.Join(folder, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Problem
	return list, json.Unmarshal(b, &list)
}
