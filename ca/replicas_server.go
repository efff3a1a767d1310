package ca

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/ca/handover"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/etcdstore"
	"github.com/writ-mesh/writ/ca/roots"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// replicasServer implements writ.ca.v1.Replicas.
type replicasServer struct {
	capb.UnimplementedReplicasServer

	a *Authority
	// cluster is the ledger, if it is one of a cluster.
	cluster ledger.Store
}

// RenewMember implements writ.ca.v1.Replicas.
func (s *replicasServer) RenewMember(ctx context.Context, req *capb.RenewMemberRequest) (*capb.RenewMemberResponse, error) {
	err := etcdstore.Renew(ctx, s.cluster, req.GetName())
	(&admin{a: s.a}).audit(ctx, "RenewMember", err, slog.String("member", req.GetName()))
	switch {
	case err == nil:
		return new(capb.RenewMemberResponse), nil
	case errors.Is(err, etcdstore.ErrRefused):
		return nil, refuse(unfit, "%v", err)
	}
	return nil, refuse(unavailable, "the cluster cannot be changed at the moment; see the authority's log, and try again").because(err)
}

// ListReplicas implements writ.ca.v1.Replicas.
func (s *replicasServer) ListReplicas(ctx context.Context, _ *capb.ListReplicasRequest) (*capb.ListReplicasResponse, error) {
	others := s.a.keeper.others
	there, asking, err := others.all(ctx)
	(&admin{a: s.a}).audit(ctx, "ListReplicas", err)
	if err != nil {
		return nil, refuse(unavailable, "the ledger cannot be read at the moment; see the authority's log").because(err)
	}
	out := new(capb.ListReplicasResponse)
	add := func(list []handover.Replica, asks bool) {
		for _, one := range list {
			out.Replicas = append(out.Replicas, &capb.Replica{Id: one.ID, Host: one.Host, Since: timestamppb.New(one.Since), Asks: asks, Self: one.ID == others.announced()})
		}
	}
	add(there, false)
	add(asking, true)
	return out, nil
}

// AdmitReplica implements writ.ca.v1.Replicas.
func (s *replicasServer) AdmitReplica(ctx context.Context, req *capb.AdmitReplicaRequest) (*capb.AdmitReplicaResponse, error) {
	err := s.a.keeper.others.admit(ctx, administrator(ctx), req.GetId())
	(&admin{a: s.a}).audit(ctx, "AdmitReplica", err, slog.String("replica", req.GetId()))
	switch {
	case err == nil:
		return new(capb.AdmitReplicaResponse), nil
	case errors.Is(err, ledger.ErrUnavailable), errors.Is(err, ledger.ErrConflict):
		return nil, refuse(unavailable, "the ledger cannot be written at the moment; see the authority's log, and try again").because(err)
	case errors.Is(err, roots.ErrRefused):
		return nil, refuse(unfit, "%v", err)
	}
	return nil, refuse(internal, "%v", err)
}
