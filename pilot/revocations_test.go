package pilot

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/xds"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func revokedIdentity(sequence uint64, id string) *model.Revoked {
	return &model.Revoked{Sequence: sequence, Newest: sequence, Identities: []model.RevokedIdentity{{SPIFFEID: id, Sequence: sequence}}}
}

// enforced is what the configuration that clients are being given says.
func (f *fixture) enforced() []model.RevokedIdentity {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current.revoked.Identities
}

func TestRevocationIsARevision(t *testing.T) {
	state := t.TempDir()
	const id = "spiffe://cluster.local/ns/default/sa/a"
	files := map[string]string{"one.yaml": entry("one", "8001")}
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, state, files)
		f.sidecar(1, nil)
		f.want("serving 1", "1 live")
		f.setRevoked(revokedIdentity(7, id))
		f.want("serving 2", "2 live", "1 live")
		f.setRevoked(&model.Revoked{Sequence: 8, Newest: 7, Identities: revokedIdentity(7, id).Identities}) // an expired certificate has left the list
		f.want("serving 2", "2 live", "1 live")
		if e := f.enforced(); len(e) != 1 || e[0].SPIFFEID != id {
			t.Errorf("enforced: %v", e)
		}
		f.setRevoked(&model.Revoked{Sequence: 9})
		f.want("serving 3", "3 live", "2 live", "1 live")
		if n := f.revoked.Newest; n != 7 {
			t.Errorf("the number of the newest revocation fell to %d, which closes connections for nothing", n)
		}
		f.setRevoked(revokedIdentity(10, id))
		f.want("serving 4", "4 live", "3 live", "2 live", "1 live")
	})
	// A start without the authority goes on with what it said last.
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, state, files)
		f.want("serving 4", "4 live")
		if e := f.enforced(); len(e) != 1 || e[0].SPIFFEID != id {
			t.Errorf("enforced: %v", e)
		}
	})
	for _, damage := range []string{"", "{", "[]"} {
		file := filepath.Join(state, revocationsFile)
		if err := os.WriteFile(file, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := loadRevoked(file, slog.New(slog.DiscardHandler)); len(r.Identities) != 0 || r.Sequence != 0 {
			t.Errorf("%q: %v", damage, r)
		}
	}
}

// TestRevocationOutlivesARejectedEdit: the last good revision is older than the
// revocation, and does not bring back who is revoked.
func TestRevocationOutlivesARejectedEdit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const id = "spiffe://cluster.local/ns/default/sa/a"
		f := newFixture(t, "", map[string]string{"one.yaml": entry("one", "8001"), "two.yaml": routeTo("one", "one")})
		c := f.sidecar(1, nil)
		f.want("serving 1", "1 live")
		c.mu.Lock()
		c.refuse = func(r *discoveryv3.DeltaDiscoveryResponse) string {
			switch {
			case r.TypeUrl != xds.RouteType:
				return ""
			case r.SystemVersionInfo == "2": // while the edit is on its way
				f.setRevoked(revokedIdentity(7, id))
			case r.SystemVersionInfo != "3":
				return ""
			}
			return "no such timeout"
		}
		c.mu.Unlock()
		f.source.set(map[string]string{"two.yaml": withTimeout(7)})
		synctest.Wait()
		st := f.state()
		if st[0] != "serving 4" || !strings.HasPrefix(st[1], "4 live") || !strings.HasPrefix(st[2], "3 rejected") {
			t.Errorf("status: %q", st)
		}
		if e := f.enforced(); len(e) != 1 || e[0].SPIFFEID != id {
			t.Errorf("enforced: %v", e)
		}
	})
}

// TestRevocationTakenBackAfterTheListener: a revision in which a caller of a TCP port is no
// more revoked, and is refused by a policy, lets him in at no moment. What is revoked is in
// endpoints, and policies are in the listener.
func TestRevocationTakenBackAfterTheListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "", map[string]string{"db.yaml": `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: default}
spec:
  hosts: [db.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 3306, name: tcp, protocol: TCP}]
  endpoints: [{address: 127.0.9.1}]
`})
		f.setRevoked(revokedIdentity(7, "spiffe://cluster.local/ns/default/sa/a"))
		var order []string
		f.sidecar(1, func(r *discoveryv3.DeltaDiscoveryResponse) string {
			for _, is := range r.GetResources() {
				if name := is.GetName(); name == "virtualInbound" || strings.HasPrefix(name, "inbound|3306|") && r.GetTypeUrl() == xds.EndpointType {
					order = append(order, strings.TrimPrefix(r.GetTypeUrl(), "type.googleapis.com/envoy.config."))
				}
			}
			return ""
		})
		synctest.Wait()
		order = nil
		f.mu.Lock()
		f.revoked = &model.Revoked{Sequence: 8, Newest: 7}
		f.mu.Unlock()
		f.source.set(map[string]string{"deny.yaml": `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/a]}}]}]}
`})
		synctest.Wait()
		if want := []string{"listener.v3.Listener", "endpoint.v3.ClusterLoadAssignment"}; !slices.Equal(order, want) {
			t.Errorf("told of %v, want %v", order, want)
		}
	})
}

func TestWhatMakesNoSenseIsPassedOver(t *testing.T) {
	const id = "spiffe://cluster.local/ns/default/sa/a"
	digest := strings.Repeat("ab", 32)
	list := &capb.RevocationList{Sequence: 9, Revocations: []*capb.Revocation{
		{SpiffeId: id, Sequence: 1},
		{SpiffeId: id, Serial: "0a", Sha256: digest, Sequence: 2},
		{SpiffeId: "spiffe://cluster.local/writ/node/n1", Sequence: 3}, // has no TCP connections of the mesh
		{SpiffeId: "no", Sequence: 3},
		{SpiffeId: "dns:www.example.org", Serial: "0b", Sha256: digest, Sequence: 3}, // sensible, and nobody's in the mesh
		{SpiffeId: "spiffe://elsewhere/ns/a/sa/b", Sequence: 4},
		{SpiffeId: id, Serial: "0a", Sha256: "ab", Sequence: 5},
		{SpiffeId: id, Serial: "x'", Sha256: digest, Sequence: 6},
		{SpiffeId: id, Serial: strings.Repeat("ab", 21), Sha256: digest, Sequence: 7},
		{Sequence: 8},
		{Authority: "x", Sequence: 8},
		{Authority: "0a0b", Sequence: 6},
	}}
	r, bad := revokedOf(list, spiffeid.RequireTrustDomainFromString("cluster.local"))
	if len(bad) != 7 || len(r.Identities) != 2 || len(r.Certificates) != 1 || r.Newest != 6 || r.Everybody != 6 || r.Sequence != 9 {
		t.Errorf("%+v, passed over %v", r, bad)
	}
}
