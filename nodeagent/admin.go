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
	state, _ := a.authority.crlState.Get()
	resp.Revocation = state.String()
	seen, _ := a.seen.Get()
	resp.Ledger = seen.String()
	issued := make(map[string]*nodeagentpb.WorkloadStatus)
	for _, w := range a.attestor.Workloads() {
		counts := a.sds.Counts(w.ProxyID)
		st := &nodeagentpb.WorkloadStatus{ProxyId: w.ProxyID, SpiffeId: w.ID.String(), Acked: counts.Acked, Nacked: counts.Nacked}
		issued[w.ProxyID+" "+w.ID.String()] = st
		resp.Workloads = append(resp.Workloads, st)
	}
	for _, v := range a.svids.Status() {
		st := issued[v.ProxyID+" "+v.ID.String()]
		if st == nil && a.attestor.Serves(v.ProxyID) {
			counts := a.sds.Counts(v.ProxyID)
			st = &nodeagentpb.WorkloadStatus{ProxyId: v.ProxyID, SpiffeId: v.ID.String(), Acked: counts.Acked, Nacked: counts.Nacked}
			resp.Workloads = append(resp.Workloads, st)
		}
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

// ExplainIdentity implements nodeagentpb.AdminServer.
func (s admin) ExplainIdentity(ctx context.Context, req *nodeagentpb.ExplainIdentityRequest) (*nodeagentpb.ExplainIdentityResponse, error) {
	x, err := s.agent.attestor.Explain(ctx, req.GetPid())
	if err != nil {
		return nil, err
	}
	resp := &nodeagentpb.ExplainIdentityResponse{
		Node: s.agent.cfg.Node, Pid: req.GetPid(), Facts: x.Facts, Unread: x.Unread,
		By: x.By, Refusal: x.Refusal, Registrations: uint32(x.Registrations),
	}
	if w := x.Workload; w != nil {
		resp.SpiffeId = w.ID.String()
		if !w.Registered {
			resp.ProxyId = w.ProxyID
		}
	}
	for _, n := range x.Nearest {
		resp.Nearest = append(resp.Nearest, &nodeagentpb.NearRegistration{Id: n.ID, SpiffeId: n.SPIFFEID.String(), Facts: n.Facts, Missing: n.Missing})
	}
	return resp, nil
}
