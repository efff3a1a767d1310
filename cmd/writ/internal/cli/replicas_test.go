package cli

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// replicated is an authority beside which another one asks for the key.
type replicated struct {
	capb.UnimplementedReplicasServer

	admitted []string
}

func (*replicated) ListReplicas(context.Context, *capb.ListReplicasRequest) (*capb.ListReplicasResponse, error) {
	return &capb.ListReplicasResponse{Replicas: []*capb.Replica{
		{Id: "aa11", Host: "ca-1", Since: timestamppb.Now(), Self: true}, {Id: "bb22", Host: "ca-2", Since: timestamppb.Now(), Asks: true},
	}}, nil
}

func (r *replicated) AdmitReplica(_ context.Context, req *capb.AdmitReplicaRequest) (*capb.AdmitReplicaResponse, error) {
	if req.GetId() != "bb22" {
		return nil, status.Error(codes.FailedPrecondition, "no replica "+req.GetId()+" asks for the key of the root")
	}
	r.admitted = append(r.admitted, req.GetId())
	return new(capb.AdmitReplicaResponse), nil
}

func (*replicated) RenewMember(_ context.Context, req *capb.RenewMemberRequest) (*capb.RenewMemberResponse, error) {
	if req.GetName() != "ca-3" {
		return nil, status.Error(codes.FailedPrecondition, "member "+req.GetName()+" is there; stop it first")
	}
	return new(capb.RenewMemberResponse), nil
}

func TestReplicas(t *testing.T) {
	r := new(replicated)
	socket := adminServer(t, func(s *grpc.Server) { capb.RegisterReplicasServer(s, r) })
	for _, tc := range []struct {
		args string
		code int
		want []string
	}{
		{"roots replicas", 0, []string{"aa11  ca-1", "this one", "asks for the key: writ roots admit bb22"}},
		{"roots replicas -o json", 0, []string{`"id": "aa11"`, `"asks": true`}},
		{"roots admit bb22", 0, []string{"replica bb22 is given the keys of the roots"}},
		{"roots admit cc33", 1, []string{"writ: no replica cc33 asks"}},
		{"roots renew-member ca-3", 0, []string{"member ca-3 may be started"}},
		{"roots renew-member ca-1", 1, []string{"writ: member ca-1 is there"}},
		{"roots admit", 2, []string{"the ID of a replica"}},
	} {
		var out bytes.Buffer
		if code := Main(append(strings.Fields(tc.args), "--admin", socket), &out, &out); code != tc.code {
			t.Errorf("%s: exit code %d, want %d:\n%s", tc.args, code, tc.code, &out)
		}
		for _, want := range tc.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: want %q in:\n%s", tc.args, want, &out)
			}
		}
	}
	if !slices.Equal(r.admitted, []string{"bb22"}) {
		t.Errorf("admitted %v", r.admitted)
	}
}
