package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

func live(n uint64) *pilotpb.Revision {
	return &pilotpb.Revision{Number: n, State: pilotpb.RevisionState_REVISION_STATE_LIVE, TimeToLive: durationpb.New(44 * time.Millisecond)}
}

func TestEachEditIsALine(t *testing.T) {
	pending := &pilotpb.Revision{Number: 3, State: pilotpb.RevisionState_REVISION_STATE_PENDING}
	overtaken := &pilotpb.Revision{Number: 3, State: pilotpb.RevisionState_REVISION_STATE_SUPERSEDED}
	rejected := &pilotpb.Revision{Number: 5, State: pilotpb.RevisionState_REVISION_STATE_REJECTED, Rejection: &pilotpb.Rejection{
		Client: "sidecar~127.1.1.1~a-1.default~x", Objects: []string{"VirtualService default/v (r.yaml:2)"}, Detail: "no such thing\nmore",
	}}
	broken := &pilotpb.Problem{File: "p.yaml", Line: 8, Field: "spec.x", Message: "unknown field", Severity: "error", InForce: "earlier"}
	fresh := &pilotpb.Problem{File: "n.yaml", Line: 1, Message: "no kind", Severity: "error", InForce: "nothing"}
	status := func(serving uint64, revisions []*pilotpb.Revision, problems ...*pilotpb.Problem) *pilotpb.GetStatusResponse {
		return &pilotpb.GetStatusResponse{Serving: serving, Revisions: revisions, Problems: problems}
	}
	e := newEdits("mesh", status(1, []*pilotpb.Revision{live(1)}), stamps{"a.yaml": "1", "p.yaml": "1"})
	for i, step := range []struct {
		st      *pilotpb.GetStatusResponse
		files   stamps
		rolling bool
		want    []string
	}{
		{status(1, []*pilotpb.Revision{live(1)}), stamps{"a.yaml": "1", "p.yaml": "1"}, false, nil},
		{status(2, []*pilotpb.Revision{live(2), live(1)}), stamps{"a.yaml": "2", "p.yaml": "1"}, false, []string{"revision 2 is live (a.yaml) after 44ms"}},
		{status(2, []*pilotpb.Revision{pending, live(2)}), stamps{"a.yaml": "3", "p.yaml": "1"}, false, nil},
		// The next edit overtakes it, and a third file is broken.
		{
			status(4, []*pilotpb.Revision{live(4), overtaken, live(2)}, broken),
			stamps{"a.yaml": "3", "b.yaml": "1", "p.yaml": "2"},
			false,
			[]string{"error: mesh/p.yaml:8: spec.x: unknown field; what was there before stays in force", "revision 4 is live (a.yaml, b.yaml) after 44ms"},
		},
		{status(4, []*pilotpb.Revision{live(4)}, broken, fresh), stamps{"a.yaml": "3", "b.yaml": "1", "p.yaml": "2", "n.yaml": "1"}, false, []string{"error: mesh/n.yaml:1: no kind; not in force: it has no earlier content"}},
		{status(4, []*pilotpb.Revision{live(4)}), stamps{"a.yaml": "3", "b.yaml": "1", "p.yaml": "3"}, false, []string{"no errors any more: revision 4 is in force"}},
		{status(4, []*pilotpb.Revision{rejected, live(4)}), stamps{"a.yaml": "3", "b.yaml": "1", "p.yaml": "3"}, false, []string{"error: revision 5 was refused by a-1.default: VirtualService default/v (r.yaml:2): no such thing; revision 4 stays in force"}},
		{status(4, []*pilotpb.Revision{rejected, live(4)}), stamps{"a.yaml": "3", "b.yaml": "1", "p.yaml": "3"}, false, nil},
		// A replica that starts makes revisions of which nobody wrote a file.
		{status(6, []*pilotpb.Revision{live(6)}), stamps{"a.yaml": "3", "b.yaml": "1", "p.yaml": "3"}, true, nil},
		{status(7, []*pilotpb.Revision{live(7)}), stamps{"a.yaml": "3", "b.yaml": "1", "p.yaml": "3"}, false, []string{"revision 7 is live after 44ms"}},
	} {
		if got := e.lines(step.st, step.files, step.rolling); !slices.Equal(got, step.want) {
			t.Errorf("step %d: got\n%s\nwant\n%s", i, strings.Join(got, "\n"), strings.Join(step.want, "\n"))
		}
	}
}

func TestEditsPrintNoFlood(t *testing.T) {
	e := newEdits("mesh", &pilotpb.GetStatusResponse{}, stamps{})
	st, files := &pilotpb.GetStatusResponse{Revisions: []*pilotpb.Revision{live(1)}}, stamps{}
	for i := range 100 {
		files[fmt.Sprintf("%02d.yaml", i)] = "1"
		st.Problems = append(st.Problems, &pilotpb.Problem{File: "p.yaml", Line: uint32(i), Message: "wrong", Severity: "error"})
	}
	got := e.lines(st, files, false)
	if len(got) != 7 || got[5] != "and 95 more: writ status mesh" || got[6] != "revision 1 is live (00.yaml, 01.yaml, 02.yaml, and 97 more) after 44ms" {
		t.Errorf("%d lines:\n%s", len(got), strings.Join(got, "\n"))
	}
}

// TestStampsThroughALink: a mesh directory may be a link to one.
func TestStampsThroughALink(t *testing.T) {
	dir, link := t.TempDir(), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := stampsOf(link); len(got) != 1 || got["a.yaml"] == "" {
		t.Errorf("%v", got)
	}
}
