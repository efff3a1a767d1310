package cli

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	"github.com/writ-mesh/writ/pilot/meshdir"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// watched is a pilot that sends these statuses and then nothing.
type watched struct {
	pilotpb.UnimplementedStatusServer
	// missing are the Envoys that have not connected, of each.
	missing [][]string
}

func (w watched) WatchStatus(_ *pilotpb.WatchStatusRequest, stream grpc.ServerStreamingServer[pilotpb.GetStatusResponse]) error {
	for i, missing := range w.missing {
		if err := stream.Send(&pilotpb.GetStatusResponse{Serving: uint64(i + 1), Missing: missing}); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return nil
}

// TestWait: what people and programs are told, and the exit codes.
func TestWait(t *testing.T) {
	pending, live := []string{"sidecar"}, []string(nil)
	for _, tc := range []struct {
		name   string
		states [][]string
		placed string // what writ up has told, NOW being the files as they are
		args   []string
		code   int
		out    string
	}{
		{"live", [][]string{pending, live}, `{"stamp":"NOW"}`, nil, 0, "revision 2 is live\n"},
		{"live, as JSON", [][]string{pending, live}, `{"stamp":"NOW"}`, []string{"-o", "json"}, 0, `{"live":true,"revision":"2"}`},
		{"not live", [][]string{pending}, `{"stamp":"NOW"}`, []string{"--timeout", "1s"}, 1, ""},
		{"not live, as JSON", [][]string{pending}, `{"stamp":"NOW"}`, []string{"--timeout", "1s", "-o", "json"}, 1, `{"live":false,"revision":"1","waiting":["not connected yet: sidecar"]}`},
		{"another form", [][]string{live}, `{"stamp":"NOW"}`, []string{"-o", "yaml"}, 2, ""},
		{"nothing placed yet", [][]string{live}, `{"stamp":""}`, []string{"--timeout", "1s", "-o", "json"}, 1, "{\"live\":false,\"revision\":\"1\",\"waiting\":[\"`writ up` has not acted on the files as they are\"]}"},
		{"files of before are placed", [][]string{live}, `{"stamp":"00ff"}`, []string{"--timeout", "1s"}, 1, ""},
		{"a program is late", [][]string{live}, `{"stamp":"NOW","pending":["b-1"]}`, []string{"--timeout", "1s", "-o", "json"}, 1, `{"live":false,"revision":"1","waiting":["b-1"]}`},
		{"a program is not there", [][]string{live}, `{"stamp":"NOW","problems":[{"Object":"LocalWorkload default/b","Message":"no program","Severity":"error"}]}`, []string{"-o", "json"}, 1, `{"live":false,"revision":"1","waiting":["error: LocalWorkload default/b: no program"]}`},
		{"the files cannot be acted on", [][]string{live}, `{"stamp":"NOW","refused":[{"Message":"nothing to run","Severity":"error"}]}`, []string{"-o", "json"}, 1, `{"live":false,"revision":"1","waiting":["error: nothing to run"]}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			run, err := json.Marshal(stack.Ready{Admin: map[string]string{
				"pilot": adminServer(t, func(s *grpc.Server) { pilotpb.RegisterStatusServer(s, watched{missing: tc.states}) }),
			}})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(dir, ".writ"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, ".writ", "run.json"), run, 0o600); err != nil {
				t.Fatal(err)
			}
			resolved, err := filepath.EvalSymlinks(dir)
			if err != nil {
				t.Fatal(err)
			}
			stamp := meshdir.NewReader(meshdir.Options{Dir: resolved}).Stamp()
			placed := strings.ReplaceAll(tc.placed, "NOW", hex.EncodeToString(stamp[:]))
			if err := os.WriteFile(filepath.Join(dir, ".writ", "workloads.json"), []byte(placed), 0o600); err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			code := Main(append([]string{"wait", dir}, tc.args...), &out, &errs)
			got := out.String()
			if compact := new(bytes.Buffer); json.Compact(compact, out.Bytes()) == nil {
				got = compact.String()
			}
			if code != tc.code || got != tc.out || (code == 0) != (errs.Len() == 0) {
				t.Errorf("exit code %d, %q, %q; want %d, %q", code, got, &errs, tc.code, tc.out)
			}
		})
	}
}

// TestUpTells: lines for people, an object on each line for programs.
func TestUpTells(t *testing.T) {
	ready := &stack.Ready{Revision: "1", TrustDomain: "cluster.local"}
	for _, tc := range []struct {
		form   output
		checks bool
		want   string
	}{
		{"table", false, "pilot\nrevision 2 is live\n"},
		{"table", true, "pilot\nrevision 2 is live\n"},
		{"json", false, `{"event":"starting","message":"pilot"}
{"event":"ready","mesh":{"revision":"1","trustDomain":"cluster.local","workloads":null,"gateways":null,"services":null,"admin":null,"logs":"","pid":0}}
{"event":"edit","message":"revision 2 is live"}
`},
		{"json", true, ""},
	} {
		var out bytes.Buffer
		tell, err := newTeller(tc.form, &out, tc.checks)
		if err != nil {
			t.Fatal(err)
		}
		tell.tell(event{Event: "starting", Message: "pilot"})
		if tc.form == "json" {
			tell.tell(event{Event: "ready", Mesh: ready})
		}
		tell.tell(event{Event: "edit", Message: "revision 2 is live"})
		if out.String() != tc.want {
			t.Errorf("%s, checks %v:\n%s\nwant\n%s", tc.form, tc.checks, &out, tc.want)
		}
	}
	if _, err := newTeller("yaml", nil, false); err == nil {
		t.Error("another form is taken")
	}
}
