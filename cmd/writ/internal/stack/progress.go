package stack

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

// progressFile in the state directory has how far `writ up` has come.
const progressFile = "workloads.json"

// progress is how far `writ up` has come with the files of its mesh directory.
type progress struct {
	// Stamp is that of the files that were acted on, empty while that is being done.
	Stamp string `json:"stamp"`
	// Pending is what is still to come.
	Pending []string `json:"pending,omitempty"`
	// Refused is why the workloads stay as they were, if they do.
	Refused []meshdir.Problem `json:"refused,omitempty"`
	// Problems is what is wrong with single workloads.
	Problems []meshdir.Problem `json:"problems,omitempty"`
}

// stampOf sums up the configuration files of a mesh directory, however it is named.
func stampOf(dir string) (string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	sum := meshdir.NewReader(meshdir.Options{Dir: dir}).Stamp()
	return hex.EncodeToString(sum[:sha256.Size]), nil
}

func readProgress(dir, state string) (progress, error) {
	var out progress
	if state == "" {
		state = filepath.Join(dir, stateFolder)
	}
	data, err := os.ReadFile(filepath.Join(state, progressFile))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal(data, &out)
}

// WorkloadProblems gives what is wrong with the programs of the mesh that runs
// from a directory, as its `writ up` sees them.
func WorkloadProblems(dir, state string) ([]meshdir.Problem, error) {
	p, err := readProgress(dir, state)
	return p.Problems, err
}

// Placed says what the mesh that runs from a directory has still to start or end
// for the files as they are, nothing if all that they describe runs. Problems are
// what keeps workloads from running although nothing is to come any more.
func Placed(dir, state string) (pending []string, problems []meshdir.Problem, err error) {
	run, err := Running(dir, state)
	if err != nil {
		return nil, nil, err
	}
	if run.PID != 0 && errors.Is(syscall.Kill(run.PID, 0), syscall.ESRCH) {
		return nil, nil, fmt.Errorf("%w from %s any more: its `writ up` (process %d) has ended", errNotRunning, dir, run.PID)
	}
	stamp, err := stampOf(dir) // before what was acted on is read: an edit meanwhile is waited for
	if err != nil {
		return nil, nil, err
	}
	p, err := readProgress(dir, state)
	if err != nil {
		return nil, nil, err
	}
	if p.Stamp != stamp && len(p.Pending) == 0 {
		return []string{"`writ up` has not acted on the files as they are"}, nil, nil
	}
	if len(p.Pending) > 0 {
		return p.Pending, nil, nil
	}
	return nil, append(meshdir.Errors(p.Refused), meshdir.Errors(p.Problems)...), nil
}

// acting notes that the workloads are being changed.
func (s *Stack) acting(todo []string) {
	s.mu.Lock()
	s.stamp, s.todo, s.refused = "", todo, nil
	s.mu.Unlock()
	s.tellProgress(time.Now())
}

// acted notes that all has been done that the files with a stamp ask for, or why it
// cannot be.
func (s *Stack) acted(stamp string, err error) {
	s.mu.Lock()
	s.stamp, s.todo, s.refused = stamp, nil, nil
	var all problemsError
	if errors.As(err, &all) {
		s.refused = all
	} else if err != nil {
		s.refused = []meshdir.Problem{{Message: err.Error() + "; the workloads stay as they are", Severity: meshdir.Error}}
	}
	s.mu.Unlock()
	s.tellProgress(time.Now())
}

// tellProgress writes down how far everything is.
func (s *Stack) tellProgress(now time.Time) {
	s.telling.Lock()
	defer s.telling.Unlock()
	problems, pending := s.lookAtPrograms(now)
	s.mu.Lock()
	data, err := json.Marshal(progress{Stamp: s.stamp, Pending: append(slices.Clone(s.todo), pending...), Refused: s.refused, Problems: problems})
	s.mu.Unlock()
	if err == nil && !bytes.Equal(data, s.told) {
		if err = atomicfile.Write(s.p.file(progressFile), data, 0o600); err == nil {
			s.told = data
		}
	}
	if err != nil {
		s.log.Debug("how far the workloads are cannot be written down", slog.Any("error", err))
	}
}
