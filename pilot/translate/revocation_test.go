package translate

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestRevokedServers: what a client behind redirection is told when a server is revoked.
// Of a TCP port the endpoints say it, where connections that are open look, and nothing
// else changes, since with another cluster they would look at the endpoints of the one
// before; of an HTTP port the cluster is another one, so that its connections are
// replaced.
func TestRevokedServers(t *testing.T) {
	b := newMesh(t)
	client := b.workload("client-1", "default", "client", nil, "http:9000")
	client.Interception = model.Redirect
	b.service("db", "default", b.workload("db-1", "default", "db", nil, "mysql:3306", "http:80"))
	b.service("cache", "default", b.workload("cache-1", "default", "cache", nil, "tcp:6379"))
	before := b.snapshot(client)
	const id, digest = "spiffe://cluster.local/ns/default/sa/db", "abcd"
	b.mesh.Revoked = model.Revoked{
		Sequence: 7, Newest: 7,
		Identities:   []model.RevokedIdentity{{SPIFFEID: id, Sequence: 6}},
		Certificates: []model.RevokedCertificate{{Serial: "0a", SPIFFEID: id, SHA256: digest, Sequence: 7}},
	}
	after := b.snapshot(client)
	validate(t, after)
	same := func(list func(*Snapshot) []Resource, name string) bool {
		t.Helper()
		find := func(s *Snapshot) proto.Message {
			for _, r := range list(s) {
				if strings.HasPrefix(r.Name, name) {
					return r.Message
				}
			}
			t.Fatalf("there is no %s", name)
			return nil
		}
		return proto.Equal(find(before), find(after))
	}
	clusters := func(s *Snapshot) []Resource { return s.Clusters }
	endpoints := func(s *Snapshot) []Resource { return s.Endpoints }
	listeners := func(s *Snapshot) []Resource { return s.Listeners }
	for name, want := range map[string][2]bool{"outbound|3306||db": {true, false}, "outbound|80||db": {false, true}, "outbound|6379||cache": {true, true}} {
		if got := [2]bool{same(clusters, name), same(endpoints, name)}; got != want {
			t.Errorf("%s: cluster and endpoints are the same: %v, want %v", name, got, want)
		}
	}
	if !same(listeners, "0.0.0.0_3306") {
		t.Error("the listener is another one")
	}
	for _, r := range after.Endpoints {
		l := r.Message.(*endpointv3.ClusterLoadAssignment).GetEndpoints()[0].GetLbEndpoints()[0] //nolint:forcetypeassert // an endpoint
		said := l.GetMetadata().GetFilterMetadata()["writ.revoked"].GetFields()
		if strings.HasPrefix(r.Name, "outbound|3306||db") && (len(said) != 2 || said[id] == nil || said[digest] == nil) {
			t.Errorf("%s says %v", r.Name, said)
		}
	}
	for _, r := range after.Listeners {
		l := r.Message.(*listenerv3.Listener) //nolint:forcetypeassert // a listener
		if r.Name == "0.0.0.0_3306" && l.GetDefaultFilterChain().GetFilters()[0].GetName() != "writ.revoked" && l.GetFilterChains()[0].GetFilters()[0].GetName() != "writ.revoked" {
			t.Errorf("nothing looks at it: %v", l)
		}
	}
	for _, r := range after.Clusters {
		if c := r.Message.(*clusterv3.Cluster); strings.HasPrefix(r.Name, "outbound|80||db") && !strings.Contains(c.GetTransportSocket().String(), "no-identity-is-registered") { //nolint:forcetypeassert // a cluster
			t.Errorf("%s takes %v", r.Name, c.GetTransportSocket())
		}
	}
}

// TestRevokedAuthority: every connection with mutual TLS is made anew, to and from HTTP
// ports too.
func TestRevokedAuthority(t *testing.T) {
	b := newMesh(t)
	client := b.workload("client-1", "default", "client", nil, "http:9000")
	b.service("client", "default", client)
	db := b.workload("db-1", "default", "db", nil, "mysql:3306", "http:80")
	b.service("db", "default", db)
	before, server := b.snapshot(client), b.snapshot(db)
	b.mesh.Revoked = model.Revoked{Sequence: 7, Newest: 7, Everybody: 7}
	changed := func(before, after []Resource) (names []string) {
		for i, r := range after {
			if !proto.Equal(before[i].Message, r.Message) {
				names = append(names, r.Name)
			}
		}
		return names
	}
	if got := changed(before.Clusters, b.snapshot(client).Clusters); len(got) != 3 {
		t.Errorf("clusters that are others: %v", got)
	}
	if got := changed(server.Listeners, b.snapshot(db).Listeners); len(got) != 2 {
		t.Errorf("listeners that are others: %v", got)
	}
	validate(t, b.snapshot(db))
}
