package pilot

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/model"
)

// digests are the hashes of the objects of a mesh, places in files left out.
type digests struct {
	// all tells apart configurations that compile to the same resources, such
	// as a policy that selects no workload: each is a revision of its own.
	all string
	// objects are by model.Ref.ID.
	objects map[string][sha256.Size]byte
}

func digest(m *model.Mesh) (digests, error) {
	d := &digester{objects: map[string][sha256.Size]byte{}}
	d.add("MeshConfig", d.message(m.Config))
	digestObjects(d, m.VirtualServices)
	digestObjects(d, m.DestinationRules)
	digestObjects(d, m.Gateways)
	digestObjects(d, m.Sidecars)
	digestObjects(d, m.PeerAuthentications)
	digestObjects(d, m.RequestAuthentications)
	digestObjects(d, m.AuthorizationPolicies)
	digestObjects(d, m.Telemetries)
	for _, p := range m.RegoPolicies {
		q := *p
		q.Meta = model.Meta{}
		d.object(&p.Meta, fmt.Appendf(nil, "%q", fmt.Sprint(q)))
	}
	for _, p := range m.QuotaPolicies {
		q := *p
		q.Meta = model.Meta{}
		d.object(&p.Meta, fmt.Appendf(nil, "%q", fmt.Sprint(q)))
	}
	if d.err != nil {
		return digests{}, fmt.Errorf("hash the configuration: %w", d.err)
	}
	sum := sha256.Sum256(d.order)
	for _, s := range m.Services { // these are in the compiled resources
		d.object(&s.Meta, fmt.Appendf(nil, "%v %v %v", s.Ports, s.Addresses, s.Resolution))
	}
	return digests{all: hex.EncodeToString(sum[:16]), objects: d.objects}, nil
}

type digester struct {
	objects map[string][sha256.Size]byte
	// order holds the sums of the objects in the order of the lists, which counts.
	order []byte
	err   error
}

func (d *digester) add(id string, content []byte) {
	sum := sha256.Sum256(append([]byte(id+"\x00"), content...))
	d.objects[id] = sum
	d.order = append(d.order, sum[:]...)
}

func (d *digester) object(m *model.Meta, content []byte) {
	d.add(m.ID(), append(fmt.Appendf(nil, "%q %q ", m.Labels, m.Annotations), content...))
}

func (d *digester) message(m proto.Message) []byte {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		d.err = err
	}
	return data
}

func digestObjects[S any, P interface {
	*S
	proto.Message
}](d *digester, list []*model.Object[S]) {
	for _, o := range list {
		d.object(&o.Meta, d.message(P(o.Spec)))
	}
}
