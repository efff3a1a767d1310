// Package placement knows which workload identities may be had on which node: what
// the mesh places there, as pilot says, and what administrators registered. It is
// what decides whether a node may ask for an identity.
package placement

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/identity"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// Set holds identities by node name.
type Set map[string]map[spiffeid.ID]bool

// FromResources reads what pilot hands out: NodePlacement messages by node name.
// Only identities of workloads of the trust domain can be placed: no node gets
// the identity of a service of Writ or of another node, whoever says so.
func FromResources(resources map[string]proto.Message, td spiffeid.TrustDomain) (Set, error) {
	s := make(Set, len(resources))
	for name, m := range resources {
		p, ok := m.(*configpb.NodePlacement)
		if !ok {
			return nil, fmt.Errorf("placement %s: want a NodePlacement, got %T", name, m)
		}
		if p.GetNode() != name {
			return nil, fmt.Errorf("placement %s is of node %q", name, p.GetNode())
		}
		for _, w := range p.GetWorkloads() {
			if err := s.add(name, w.GetSpiffeId(), td); err != nil {
				return nil, fmt.Errorf("placement of %s/%s on node %s: %w", w.GetNamespace(), w.GetName(), name, err)
			}
		}
	}
	return s, nil
}

func (s Set) add(node, rawID string, td spiffeid.TrustDomain) error {
	id, err := spiffeid.FromString(rawID)
	if err != nil {
		return fmt.Errorf("SPIFFE ID %q: %w", rawID, err)
	}
	if !id.MemberOf(td) {
		return fmt.Errorf("%s is not in the trust domain %s", id, td.Name())
	}
	if _, _, ok := identity.WorkloadOf(id); !ok {
		return fmt.Errorf("%s is no workload's identity (%s/ns/<namespace>/sa/<service account>)", id, td.IDString())
	}
	if s[node] == nil {
		s[node] = make(map[spiffeid.ID]bool)
	}
	s[node][id] = true
	return nil
}

// Table is the set in force. It is safe for concurrent use.
type Table struct {
	mu         sync.Mutex
	set        Set
	registered registrations
	changed    chan struct{} // closed at the next change
	loaded     chan struct{} // closed when the registrations are known
}

// NewTable returns a table with the given set, which may be nil.
func NewTable(s Set) *Table {
	return &Table{set: s, registered: newRegistrations(), changed: make(chan struct{}), loaded: make(chan struct{})}
}

// Replace puts a new set in force and wakes those who wait.
func (t *Table) Replace(s Set) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set = s
	close(t.changed)
	t.changed = make(chan struct{})
}

// Wait tells whether id is placed on node or registered for it. If it is not, Wait
// waits until it is or ctx ends: a workload may start a moment before its placement
// gets here.
func (t *Table) Wait(ctx context.Context, node string, id spiffeid.ID) bool {
	for {
		t.mu.Lock()
		placed, changed := t.set[node][id] || t.registered.gives(node, id), t.changed
		t.mu.Unlock()
		if placed {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// stored is the form of the file: SPIFFE IDs by node.
type stored struct {
	TrustDomain string              `json:"trust_domain"`
	Nodes       map[string][]string `json:"nodes"`
}

// Save keeps a set for the time when pilot is away.
func Save(path string, s Set, td spiffeid.TrustDomain) error {
	out := stored{TrustDomain: td.Name(), Nodes: make(map[string][]string, len(s))}
	for node, ids := range s {
		for id := range ids {
			out.Nodes[node] = append(out.Nodes[node], id.String())
		}
		slices.Sort(out.Nodes[node])
	}
	data, err := json.MarshalIndent(out, "", " ")
	if err != nil {
		return fmt.Errorf("placements: %w", err)
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}

// Load reads what Save wrote.
func Load(path string, td spiffeid.TrustDomain) (Set, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("placements: %w", err)
	}
	var in stored
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("placements: %s is damaged: %w", path, err)
	}
	s := make(Set, len(in.Nodes))
	for node, ids := range in.Nodes {
		for _, id := range ids {
			if err := s.add(node, id, td); err != nil {
				return nil, fmt.Errorf("placements: %s: node %s: %w", path, node, err)
			}
		}
	}
	return s, nil
}
