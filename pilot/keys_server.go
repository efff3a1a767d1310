package pilot

import (
	"context"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/pilot/keysource"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// maxUnknownKeys bounds the places of one report.
const maxUnknownKeys = 1000

// keySetsService is writ.pilot.v1.KeySets.
type keySetsService struct {
	pilotpb.UnimplementedKeySetsServer
	pilot *Pilot
}

func keySetsMethods() rpc.Methods {
	return rpc.Methods{pilotpb.KeySets_ReportUnknownKeys_FullMethodName: rpc.AnyService(identity.Authz)}
}

// ReportUnknownKeys implements writ.pilot.v1.KeySets. Whatever a report says, it has no
// issuer looked at more than once a second.
func (s *keySetsService) ReportUnknownKeys(_ context.Context, req *pilotpb.ReportUnknownKeysRequest) (*pilotpb.ReportUnknownKeysResponse, error) {
	if n := len(req.GetAt()); n > maxUnknownKeys {
		return nil, status.Errorf(codes.InvalidArgument, "%d places, more than %d", n, maxUnknownKeys)
	}
	p := s.pilot
	p.mu.Lock()
	current := p.current
	p.mu.Unlock()
	if current != nil {
		p.keySets.Refetch(keysAt(current.mesh, current.placed, req.GetAt()))
	}
	return &pilotpb.ReportUnknownKeysResponse{}, nil
}

// keysAt gives the keys of the places whose keys the proxies have that reported.
func keysAt(m *model.Mesh, placed map[string]*model.Proxy, reports []*pilotpb.UnknownKeys) []string {
	var out []string
	add := func(list []*model.RequestAuthentication) {
		for _, ra := range list {
			for _, rule := range ra.Spec.GetJwtRules() {
				if at, ok := m.KeyPlace(ra.Namespace, rule); ok {
					out = append(out, at.Key())
				}
			}
		}
	}
	for _, r := range reports {
		namespace, account := accountOf(r.GetIdentity())
		switch p := placed[r.GetProxy()]; {
		case r.GetIdentity() != "":
			for _, p := range m.Proxies {
				if p.Namespace == namespace && p.ServiceAccount == account {
					add(eval.Select(m, p).JWT)
				}
			}
		case p != nil:
			add(eval.Select(m, p).JWT)
		default: // a proxy that the mesh does not place
			namespace := namespaceOf(r.GetProxy())
			for _, ra := range m.RequestAuthentications {
				if ra.Namespace == namespace || ra.Namespace == m.RootNamespace {
					add([]*model.RequestAuthentication{ra})
				}
			}
		}
	}
	return out
}

// accountOf gives a workload's namespace and service account, both empty if it is none.
func accountOf(text string) (namespace, account string) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return "", ""
	}
	namespace, account, _ = identity.WorkloadOf(id)
	return namespace, account
}

// namespaceOf reads a node id, KIND~IP~NAME.NAMESPACE~DOMAIN; empty if it is none.
func namespaceOf(node string) string {
	parts := strings.Split(node, "~")
	if len(parts) != 4 {
		return ""
	}
	return parts[2][strings.LastIndexByte(parts[2], '.')+1:]
}

// keySetStatus is what the status says of where keys are.
func keySetStatus(all []keysource.Status) []*pilotpb.KeySetStatus {
	stamp := func(t time.Time) *timestamppb.Timestamp {
		if t.IsZero() {
			return nil
		}
		return timestamppb.New(t)
	}
	var out []*pilotpb.KeySetStatus
	for _, s := range all {
		k := &pilotpb.KeySetStatus{
			Uri: s.URI, Entry: s.Entry, Issuers: s.Issuers, Keys: uint32(s.Keys),
			FetchedAt: stamp(s.Fetched), ChangedAt: stamp(s.Changed), FailingSince: stamp(s.Failing), NextTryAt: stamp(s.Next),
		}
		if s.Err != nil {
			k.Error = s.Err.Error()
		}
		out = append(out, k)
	}
	return out
}
