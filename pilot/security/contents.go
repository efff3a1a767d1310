package security

import (
	"encoding/binary"
	"sync"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// contents are what the policies of one action come to: the content of filters by
// name, and who is named.
type contents struct {
	filters          map[string]*anypb.Any
	refs, shadowRefs []model.Ref
}

func contentsOf(set ruleSet) contents {
	return contents{filters: map[string]*anypb.Any{}, refs: set.refs, shadowRefs: set.shadowRefs}
}

func (c contents) enable(filter string, rbac *rbachttpv3.RBAC) {
	c.filters[filter] = envoy.Any(perRoute(rbac))
}

// replicas keep what the same policies come to: each replica of a workload, and each of
// its ports, has the same.
type replicas struct {
	numbers map[*model.AuthorizationPolicy]uint32
	// known has functions that give contents, by what they are made of.
	known sync.Map
}

func newReplicas(m *model.Mesh) *replicas {
	r := &replicas{numbers: make(map[*model.AuthorizationPolicy]uint32, len(m.AuthorizationPolicies))}
	for i, p := range m.AuthorizationPolicies {
		r.numbers[p] = uint32(i) //nolint:gosec // far fewer
	}
	return r
}

// once gives what compile makes of policies, which is called for the first replica only.
func (r *replicas) once(action rbacv3.RBAC_Action, gateway bool, policies []*model.AuthorizationPolicy, compile func() (contents, error)) (contents, error) {
	key := []byte{byte(action), 0}
	if gateway {
		key[1] = 1
	}
	for _, p := range policies {
		n, ok := r.numbers[p]
		if !ok {
			return compile() // made for this workload, of ServiceRoles
		}
		key = binary.LittleEndian.AppendUint32(key, n)
	}
	known, _ := r.known.LoadOrStore(string(key), sync.OnceValues(compile))
	return known.(func() (contents, error))() //nolint:forcetypeassert // stored here only
}
