package nodeagent

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

// admin implements the service for the supervisor. Who may call is decided before.
type admin struct {
	nodeagentpb.UnimplementedAdminServer
	agent *agent
}

// RegisterProcess implements nodeagentpb.AdminServer.
func (s admin) RegisterProcess(ctx context.Context, req *nodeagentpb.RegisterProcessRequest) (*nodeagentpb.RegisterProcessResponse, error) {
	if err := s.agent.attestor.Register(ctx, req.GetPid(), req.GetProxyId()); err != nil {
		return nil, err
	}
	return &nodeagentpb.RegisterProcessResponse{}, nil
}

// GetStatus implements nodeagentpb.AdminServer.
func (s admin) GetStatus(context.Context, *nodeagentpb.GetStatusRequest) (*nodeagentpb.GetStatusResponse, error) {
	a := s.agent
	resp := &nodeagentpb.GetStatusResponse{Node: a.cfg.Node, PilotConnected: a.pilot.Ready(), CaConnected: a.authority.up.Load()}
	issued := make(map[string]*nodeagentpb.WorkloadStatus)
	for _, w := range a.attestor.Workloads() {
		counts := a.sds.Counts(w.ProxyID)
		st := &nodeagentpb.WorkloadStatus{ProxyId: w.ProxyID, SpiffeId: w.ID.String(), Acked: counts.Acked, Nacked: counts.Nacked}
		issued[w.ProxyID+" "+w.ID.String()] = st
		resp.Workloads = append(resp.Workloads, st)
	}
	for _, v := range a.svids.Status() {
		st := issued[v.ProxyID+" "+v.ID.String()]
		if st == nil {
			continue
		}
		st.Issued = v.Issued
		if v.SVID != nil {
			st.Serial, st.NotAfter = v.SVID.Serial(), timestamppb.New(v.SVID.NotAfter())
		}
	}
	return resp, nil
}
