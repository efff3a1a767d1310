package cli

import (
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// Bounds of what one edit prints.
const (
	maxProblemLines = 5
	maxFileNames    = 3
)

// stamps tells versions of the files of a mesh directory apart: time and size by
// name.
type stamps map[string]string

// stampsOf looks at the files that are configuration or may be named by it.
func stampsOf(dir string) stamps {
	out := stamps{}
	dir += string(filepath.Separator) // it may be a link to a directory
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil //nolint:nilerr // what cannot be read is pilot's to report
		case path != dir && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case d.IsDir():
			return nil
		}
		if info, err := d.Info(); err == nil {
			if name, err := filepath.Rel(dir, path); err == nil {
				out[name] = fmt.Sprint(info.ModTime().UnixNano(), info.Size())
			}
		}
		return nil
	})
	return out
}

// edits turns what pilot says into a line for each edit. It does no I/O.
type edits struct {
	// dir is the mesh directory as the user wrote it.
	dir string
	// revision is the newest that was told of; files is the directory then.
	revision uint64
	files    stamps
	// problems has the lines that were told and still hold.
	problems map[string]bool
	errors   int
}

// newEdits begins with what is known at the start.
func newEdits(dir string, st *pilotpb.GetStatusResponse, files stamps) *edits {
	e := &edits{dir: dir, files: files, problems: map[string]bool{}}
	for _, r := range st.GetRevisions() {
		e.revision = max(e.revision, r.GetNumber())
	}
	e.newProblems(st)
	return e
}

// lines gives what is to be told of a status. rolling says that revisions may
// come of replicas that start and end, which is told elsewhere.
func (e *edits) lines(st *pilotpb.GetStatusResponse, files stamps, rolling bool) []string {
	before := e.errors
	out := e.newProblems(st)
	told := false
	for _, r := range st.GetRevisions() { // the newest first
		if r.GetNumber() <= e.revision {
			break
		}
		switch r.GetState() {
		case pilotpb.RevisionState_REVISION_STATE_REJECTED:
			rej := r.GetRejection()
			out = append(out, fmt.Sprintf("error: revision %d was refused by %s: %s: %s; revision %d stays in force",
				r.GetNumber(), clientName(rej.GetClient()), strings.Join(rej.GetObjects(), ", "), firstLine(rej.GetDetail()), st.GetServing()))
		case pilotpb.RevisionState_REVISION_STATE_LIVE:
			names := e.changed(st, files)
			if names == "" && rolling {
				break
			}
			line := fmt.Sprintf("revision %d is live", r.GetNumber())
			if names != "" {
				line += " (" + names + ")"
			}
			out = append(out, fmt.Sprintf("%s after %s", line, r.GetTimeToLive().AsDuration().Round(time.Millisecond)))
		default:
			continue
		}
		told = true
		e.files = files
		e.revision = r.GetNumber()
		break // older ones were overtaken by it
	}
	if before > 0 && e.errors == 0 && !told {
		e.files = files
		out = append(out, fmt.Sprintf("no errors any more: revision %d is in force", st.GetServing()))
	}
	return out
}

// newProblems remembers what is wrong now and gives the lines that are new.
func (e *edits) newProblems(st *pilotpb.GetStatusResponse) []string {
	now := map[string]bool{}
	var out []string
	e.errors = 0
	for _, p := range st.GetProblems() {
		line := problemLine(e.dir, p)
		if p.GetSeverity() == "error" {
			e.errors++
		}
		if !e.problems[line] && !now[line] {
			out = append(out, line)
		}
		now[line] = true
	}
	e.problems = now
	if n := len(out) - maxProblemLines; n > 0 {
		out = append(out[:maxProblemLines], fmt.Sprintf("and %d more: writ status %s", n, e.dir))
	}
	return out
}

// changed names the files that differ from those of the last revision and have
// no error.
func (e *edits) changed(st *pilotpb.GetStatusResponse, files stamps) string {
	bad := map[string]bool{}
	for _, p := range st.GetProblems() {
		bad[p.GetFile()] = bad[p.GetFile()] || p.GetSeverity() == "error"
	}
	names := map[string]bool{}
	for _, other := range []stamps{e.files, files} {
		for name := range other {
			if e.files[name] != files[name] && !bad[name] {
				names[name] = true
			}
		}
	}
	list := slices.Sorted(maps.Keys(names))
	if n := len(list) - maxFileNames; n > 0 {
		list = append(list[:maxFileNames], fmt.Sprintf("and %d more", n))
	}
	return strings.Join(list, ", ")
}
