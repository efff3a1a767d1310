package stack

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/writ-mesh/writ/authz/bundlestatus"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

// BundleProblems gives the RegoPolicies whose bundle cannot be used as it is now,
// in the mesh that runs from a directory, as its authz sees them. A policy without
// any bundle in force refuses everything.
func BundleProblems(dir, state string) ([]meshdir.Problem, error) {
	if state == "" {
		state = filepath.Join(dir, stateFolder)
	}
	list, err := bundlestatus.Read(filepath.Join(state, "authz"))
	if err != nil {
		return nil, err
	}
	out := make([]meshdir.Problem, len(list))
	for i, p := range list {
		file, line, _ := strings.Cut(p.Source, ":")
		n, _ := strconv.Atoi(line)
		out[i] = meshdir.Problem{File: file, Line: n, Object: "RegoPolicy " + p.Policy, Field: "spec.bundle", Severity: meshdir.Error, Message: p.Reason + "; nothing is in force, everything is refused"}
		if !p.Since.IsZero() {
			out[i].Severity = meshdir.Warning
			out[i].Message = p.Reason + "; that of " + p.Since.Local().Format(time.DateTime) + " stays in force"
		}
	}
	return out, nil
}
