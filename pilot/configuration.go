package pilot

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/rpc"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// configurationMethods are for the admin socket: the files may hold secrets.
func configurationMethods() rpc.Methods {
	return rpc.Methods{pilotpb.Configuration_GetConfiguration_FullMethodName: rpc.SameUser()}
}

// configurationService is writ.pilot.v1.Configuration.
type configurationService struct {
	pilotpb.UnimplementedConfigurationServer
	pilot *Pilot
}

// GetConfiguration gives the files of what is served.
func (s *configurationService) GetConfiguration(context.Context, *pilotpb.GetConfigurationRequest) (*pilotpb.GetConfigurationResponse, error) {
	p := s.pilot
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return nil, status.Error(codes.Unavailable, "nothing is in force yet; see writ status")
	}
	files := p.source.Contents(p.current.mesh)
	if files == nil {
		return nil, status.Error(codes.Unavailable, "the files of what is in force are not known any more: ask again when a new revision is live")
	}
	d := p.current.mesh.Deciders
	out := &pilotpb.GetConfigurationResponse{
		Revision: p.current.snapshot.Revision, Files: files, Authz: d.Authz, Ratelimit: d.RateLimit, Lists: map[string]*pilotpb.FetchedList{},
	}
	p.current.tell(out)
	return out, nil
}

// tell adds what is in force besides the files.
func (s besides) tell(out *pilotpb.GetConfigurationResponse) {
	for _, c := range s.revoked.Certificates {
		out.RevokedCertificates = append(out.RevokedCertificates, &pilotpb.RevokedCertificate{Serial: c.Serial, SpiffeId: c.SPIFFEID})
	}
	for _, i := range s.revoked.Identities {
		out.RevokedIdentities = append(out.RevokedIdentities, i.SPIFFEID)
	}
	out.KeySets = s.keys
	for name, list := range s.fetched {
		out.Lists[name] = &pilotpb.FetchedList{Entries: list.Entries, Expired: list.Expired}
	}
}
