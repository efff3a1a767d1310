package pilot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
)

// digests are the hashes of the objects of a mesh, places in files left out.
type digests struct {
	// all tells apart configurations that compile to the same resources, such
	// as a policy that selects no workload: each is a revision of its own.
	all string
	// objects are by model.Ref.ID.
	objects map[string][sha256.Size]byte
	// policies are those of the AuthorizationPolicies again.
	policies map[*model.AuthorizationPolicy][sha256.Size]byte
}

// digest hashes a mesh. Of earlier, which may be nil, it takes the policies that are
// the same objects still, since there may be many.
func digest(m *model.Mesh, earlier *digests) (digests, error) {
	d := &digester{objects: map[string][sha256.Size]byte{}}
	policies := make(map[*model.AuthorizationPolicy][sha256.Size]byte, len(m.AuthorizationPolicies))
	d.add("MeshConfig", d.message(m.Config))
	digestObjects(d, m.VirtualServices)
	digestObjects(d, m.DestinationRules)
	digestObjects(d, m.Gateways)
	digestObjects(d, m.Sidecars)
	digestObjects(d, m.PeerAuthentications)
	digestObjects(d, m.RequestAuthentications)
	for _, p := range m.AuthorizationPolicies {
		if earlier != nil {
			if sum, ok := earlier.policies[p]; ok {
				d.addSum(p.ID(), sum)
				policies[p] = sum
				continue
			}
		}
		d.object(&p.Meta, d.message(p.Spec))
		policies[p] = d.objects[p.ID()]
	}
	digestObjects(d, m.Telemetries)
	digestObjects(d, m.EnvoyFilters)
	for _, p := range m.RegoPolicies {
		q := *p
		q.Form, q.ModuleFile, q.ModuleLine = nil, "", 0 // follow from the rest, or tell places
		digestOwn(d, q, func(q *model.RegoPolicy) *model.Meta { return &q.Meta })
	}
	for _, p := range m.QuotaPolicies {
		digestOwn(d, *p, func(q *model.QuotaPolicy) *model.Meta { return &q.Meta })
	}
	for _, p := range m.ServiceRoles {
		digestOwn(d, *p, func(q *model.ServiceRole) *model.Meta { return &q.Meta })
	}
	for _, p := range m.ServiceRoleBindings {
		digestOwn(d, *p, func(q *model.ServiceRoleBinding) *model.Meta { return &q.Meta })
	}
	for _, p := range m.AccessLists {
		digestOwn(d, *p, func(q *model.AccessList) *model.Meta { return &q.Meta })
	}
	if p := m.RbacConfig; p != nil {
		digestOwn(d, *p, func(q *model.RbacConfig) *model.Meta { return &q.Meta })
	}
	for _, s := range m.Services {
		d.object(&s.Meta, d.service(s))
	}
	for _, s := range m.Secrets {
		d.objects[s.ID()] = sha256.Sum256(bytes.Join([][]byte{s.Cert, s.Key, s.CA, s.CRL}, []byte{0}))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Secrets)) {
		sum := d.objects[m.Secrets[name].ID()]
		d.order = append(d.order, sum[:]...)
	}
	if r := &m.Revoked; len(r.Certificates)+len(r.Identities) > 0 || r.Newest > 0 {
		d.add(security.RevokedRef().ID(), d.value([]any{r.Newest, r.Everybody, r.Certificates, r.Identities}))
	}
	if r := &m.Tokens; r.Any() {
		d.add(security.TokensRef().ID(), d.value(r))
	}
	d.order = append(d.order, d.value([]any{m.NamespaceLabels, m.TrustDomain, m.TrustDomainAliases, m.FederatedDomains, m.Deciders, m.Fetched, m.KeySets})...)
	if d.err != nil {
		return digests{}, fmt.Errorf("hash the configuration: %w", d.err)
	}
	sum := sha256.Sum256(d.order)
	return digests{all: hex.EncodeToString(sum[:16]), objects: d.objects, policies: policies}, nil
}

type digester struct {
	objects map[string][sha256.Size]byte
	// order holds the sums of the objects in the order of the lists, which counts.
	order []byte
	err   error
}

func (d *digester) add(id string, content []byte) {
	d.addSum(id, sha256.Sum256(append([]byte(id+"\x00"), content...)))
}

func (d *digester) addSum(id string, sum [sha256.Size]byte) {
	d.objects[id] = sum
	d.order = append(d.order, sum[:]...)
}

func (d *digester) object(m *model.Meta, content []byte) {
	d.add(m.ID(), append(d.value([]any{m.Labels, m.Annotations}), content...))
}

// service gives everything of a service that proxies may be told.
func (d *digester) service(s *model.Service) []byte {
	type endpoint struct {
		model.Endpoint
		Proxy string // in place of the proxy itself
	}
	endpoints := make([]endpoint, len(s.Endpoints))
	for i, e := range s.Endpoints {
		endpoints[i].Endpoint = *e
		if e.Proxy != nil {
			endpoints[i].Proxy = e.Proxy.ID
		}
	}
	own := *s
	own.Meta, own.Endpoints = model.Meta{}, nil
	return append(d.value(own), d.value(endpoints)...)
}

// value gives the same bytes for the same value: JSON sorts maps and follows
// pointers.
func (d *digester) value(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		d.err = err
	}
	return data
}

func (d *digester) message(m proto.Message) []byte {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		d.err = err
	}
	return data
}

// digestOwn adds an object of a kind that is no message: all of it but its place in a file.
func digestOwn[T any](d *digester, o T, meta func(*T) *model.Meta) {
	m := *meta(&o)
	*meta(&o) = model.Meta{}
	d.object(&m, d.value(o))
}

func digestObjects[S any, P interface {
	*S
	proto.Message
}](d *digester, list []*model.Object[S]) {
	for _, o := range list {
		d.object(&o.Meta, d.message(P(o.Spec)))
	}
}
