package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/internal/listen"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

// adminServer serves what register puts there on an admin socket.
func adminServer(t *testing.T, register func(*grpc.Server)) (socket string) {
	t.Helper()
	socket = "unix://" + filepath.Join(t.TempDir(), "s")
	l, err := listen.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return socket
}

// keptRegistrations is an authority's registrations.
type keptRegistrations struct {
	capb.UnimplementedRegistrationsServer
	all []*capb.Registration
}

func (k *keptRegistrations) PutRegistration(_ context.Context, r *capb.PutRegistrationRequest) (*capb.Registration, error) {
	n := &capb.Registration{Id: "0a", SpiffeId: r.GetSpiffeId(), Node: r.GetNode(), Facts: r.GetFacts(), CreatedAt: timestamppb.Now(), CreatedBy: "admin uid=0"}
	k.all = append(k.all, n)
	return n, nil
}

func (k *keptRegistrations) DeleteRegistration(_ context.Context, r *capb.DeleteRegistrationRequest) (*capb.DeleteRegistrationResponse, error) {
	if r.GetId() != "0a" {
		return nil, status.Errorf(codes.InvalidArgument, "there is no registration %s", r.GetId())
	}
	k.all = nil
	return &capb.DeleteRegistrationResponse{}, nil
}

func (k *keptRegistrations) ListRegistrations(_ *capb.ListRegistrationsRequest, s grpc.ServerStreamingServer[capb.Registration]) error {
	for _, r := range k.all {
		if err := s.Send(r); err != nil {
			return err
		}
	}
	return nil
}

func TestRegister(t *testing.T) {
	const id = "spiffe://cluster.local/ns/default/sa/billing"
	socket := adminServer(t, func(s *grpc.Server) { capb.RegisterRegistrationsServer(s, new(keptRegistrations)) })
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"register", 2, "name one SPIFFE ID"},
		{"register " + id + " --fact unix:uid:1", 2, "--node NAME or --all-nodes"},
		{"register " + id + " --node n1 --all-nodes --fact unix:uid:1", 2, "--node NAME or --all-nodes"},
		{"register " + id + " --node n1", 2, "--fact KIND:VALUE"},
		{"register " + id + " --node n1 --fact uid:1", 2, "it does not begin with"},
		{"registrations", 0, "ID  IDENTITY"},
		{"register " + id + " --node n1 --fact unix:uid:1 --fact docker:label:app:a,b", 0, "registration 0a gives " + id + " to who has unix:uid:1 and docker:label:app:a,b, on node n1"},
		{"registrations", 0, "node n1  unix:uid:1 docker:label:app:a,b"},
		{"unregister", 2, "name one id"},
		{"unregister 0b", 2, "there is no registration 0b"},
		{"unregister 0a", 0, "registration 0a is dropped"},
		{"register " + id + " --all-nodes --fact unix:uid:1", 0, "on all nodes"},
	} {
		var out bytes.Buffer
		if code := Main(append([]string{"certs"}, strings.Fields(tc.args+" --admin "+socket)...), &out, &out); code != tc.code || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%s: exit code %d, want %d and %q in:\n%s", tc.args, code, tc.code, tc.want, &out)
		}
	}
	var out bytes.Buffer
	if code := Main([]string{"certs", "registrations", "-o", "json", "--admin", socket}, &out, &out); code != 0 {
		t.Fatalf("exit code %d: %s", code, &out)
	}
	var rows []registered
	if err := json.Unmarshal(out.Bytes(), &rows); err != nil || len(rows) != 1 || rows[0].SPIFFEID != id || rows[0].Node != "" || rows[0].CreatedBy != "admin uid=0" {
		t.Errorf("%s: %v", &out, err)
	}
}

// explainer is a node agent that knows two processes.
type explainer struct {
	nodeagentpb.UnimplementedAdminServer
}

func (explainer) ExplainIdentity(_ context.Context, r *nodeagentpb.ExplainIdentityRequest) (*nodeagentpb.ExplainIdentityResponse, error) {
	switch r.GetPid() {
	case 1:
		return &nodeagentpb.ExplainIdentityResponse{Node: "n1", Pid: 1, Facts: []string{"unix:uid:1"}, SpiffeId: "spiffe://td/a", By: "registration 0a", Registrations: 1}, nil
	case 2:
		return &nodeagentpb.ExplainIdentityResponse{
			Node: "n1", Pid: 2, Facts: []string{"unix:uid:2"}, Unread: []string{"unix:path: no"}, Refusal: "nobody", Registrations: 1,
			Nearest: []*nodeagentpb.NearRegistration{{Id: "0a", SpiffeId: "spiffe://td/a", Facts: []string{"unix:uid:2", "unix:gid:3"}, Missing: []string{"unix:gid:3"}}},
		}, nil
	}
	return nil, status.Error(codes.NotFound, "no")
}

func TestExplainIdentity(t *testing.T) {
	socket := adminServer(t, func(s *grpc.Server) { nodeagentpb.RegisterAdminServer(s, explainer{}) })
	for _, tc := range []struct {
		args string
		code int
		want []string
	}{
		{"", 2, []string{"--pid N"}},
		{"--pid 1", 0, []string{"process 1 is spiffe://td/a on node n1, by registration 0a", "unix:uid:1"}},
		{"--pid 2", 1, []string{"process 2 gets no identity on node n1: nobody", "NOT SEEN\n  unix:path: no", "0a  spiffe://td/a  wants unix:gid:3"}},
		{"--pid 2 -o json", 1, []string{`"missing": [`, `"refusal": "nobody"`}},
		{"--pid 3", 2, []string{"there is no process 3"}},
	} {
		var out bytes.Buffer
		code := Main(append([]string{"explain", "identity"}, strings.Fields(tc.args+" --admin "+socket)...), &out, &out)
		for _, want := range tc.want {
			if code != tc.code || !strings.Contains(out.String(), want) {
				t.Errorf("%s: exit code %d, want %d and %q in:\n%s", tc.args, code, tc.code, want, &out)
			}
		}
	}
}
