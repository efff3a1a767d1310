package xds

import (
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestConfigForOldClients: they get what Older makes, of a version of its own, and all
// else is shared with the others.
func TestConfigForOldClients(t *testing.T) {
	made := 0
	s := New(Options{
		Old: func(c Client) bool { return c.Version == "old" },
		Older: func(r *anypb.Any) (*anypb.Any, error) {
			l := new(listenerv3.Listener)
			if !r.MessageIs(l) {
				return r, nil
			}
			made++
			if err := r.UnmarshalTo(l); err != nil {
				return nil, err
			}
			l.StatPrefix = "old"
			return anypb.New(l)
		},
	})
	defer s.Stop()
	b := NewBuilder()
	set := func(url string, messages ...proto.Message) *Set {
		var list []*Resource
		for _, m := range messages {
			r, err := b.Resource(m.(interface{ GetName() string }).GetName(), m, nil) //nolint:forcetypeassert // they have names
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, r)
		}
		return b.Set(url, list)
	}
	c := b.Config("n", set(ClusterType, &clusterv3.Cluster{Name: "a"}), set(ListenerType, &listenerv3.Listener{Name: "x"}, &listenerv3.Listener{Name: "y"}))
	if s.configFor(Client{Version: "new"}, c) != c || s.configFor(Client{Version: "old"}, nil) != nil {
		t.Error("a client of today gets another configuration")
	}
	old := s.configFor(Client{Version: "old"}, c)
	if again := s.configFor(Client{Version: "old"}, c); again != old || made != 2 || old.Node != "n" {
		t.Errorf("made %d times", made)
	}
	if old.Set(ClusterType) != c.Set(ClusterType) || old.Set(ListenerType) == c.Set(ListenerType) || old.Set(ListenerType).Hash == c.Set(ListenerType).Hash {
		t.Error("the sets are not those that they should be")
	}
	versions := map[string]string{}
	for _, r := range slices.Concat(c.Set(ListenerType).Resources(), old.Set(ListenerType).Resources()) {
		versions[r.Version] = r.Name
	}
	l := new(listenerv3.Listener)
	if err := old.Set(ListenerType).Get("x").wire.GetResource().UnmarshalTo(l); err != nil || l.GetStatPrefix() != "old" || len(versions) != 4 {
		t.Errorf("%v, %v, versions %v", l, err, versions)
	}
}
