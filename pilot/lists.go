package pilot

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/writ-mesh/writ/pilot/listsource"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
)

// listsFolder in the state directory has the entries of AccessLists that were good last.
const listsFolder = "access-lists"

func (p *Pilot) openLists(o Options) {
	keeper := listsource.Options{Limits: o.Lists, Log: o.Log, Metrics: o.Metrics}
	if o.State != "" {
		keeper.State = filepath.Join(o.State, listsFolder)
	}
	p.lists = listsource.New(keeper)
}

// setLists says which AccessLists there are, and takes up what is known of them.
func (p *Pilot) setLists(mesh *model.Mesh) {
	p.lists.Set(mesh.AccessLists)
	p.fetched = p.lists.Fetched()
}

// relist puts into force what came from the sources of AccessLists.
func (p *Pilot) relist() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeUp(func() { p.fetched = p.lists.Fetched() })
	p.metrics.setProblems(p.allProblems())
	p.notify()
}

// listProblems says which lists cannot be fetched, and what is in force instead.
func (p *Pilot) listProblems() []meshdir.Problem {
	var out []meshdir.Problem
	for _, l := range p.lists.Problems() {
		instead := "until there are some, its own entries count and all else is refused"
		switch {
		case !l.Fetched.IsZero():
			instead = fmt.Sprintf("the %d of %s stay in force", l.Entries, l.Fetched.UTC().Format(time.RFC3339))
		case l.List.FailOpen:
			instead = "until there are some, its own entries count (whenUnavailable: Allow)"
		case l.List.Deny:
			instead = "until there are some, all is refused but what its overrides allow"
		}
		out = append(out, meshdir.Problem{
			File: l.List.File, Line: l.List.Line, Object: l.List.ID(), Field: "spec.from", Severity: meshdir.Warning,
			Message: fmt.Sprintf("the entries cannot be fetched: %v; %s", l.Err, instead),
		})
	}
	return out
}
