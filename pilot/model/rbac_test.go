package model

import "testing"

// TestSelects: a service is that of a workload of its own namespace alone, whatever its
// endpoints lead to. By it roles allow, so a ServiceEntry with the address of somebody
// else's workload must not bring the roles of its author there.
func TestSelects(t *testing.T) {
	t.Parallel()
	p := &Proxy{ID: "p", Name: "web-1", Namespace: "team", Labels: map[string]string{"app": "web"}}
	at := []*Endpoint{{Proxy: p, Ports: map[uint32]uint32{80: 80}}}
	for name, c := range map[string]struct {
		s    Service
		want bool
	}{
		"an endpoint":                       {Service{Meta: Meta{Ref: Ref{Namespace: "team"}}, Endpoints: at}, true},
		"an endpoint, of another namespace": {Service{Meta: Meta{Ref: Ref{Namespace: "other"}}, Endpoints: at}, false},
		"an endpoint, outside of the mesh":  {Service{Meta: Meta{Ref: Ref{Namespace: "team"}}, External: true, Endpoints: at}, false},
		"labels":                            {Service{Meta: Meta{Ref: Ref{Namespace: "team"}}, Selector: map[string]string{"app": "web"}}, true},
		"labels, of another namespace":      {Service{Meta: Meta{Ref: Ref{Namespace: "other"}}, Selector: map[string]string{"app": "web"}}, false},
		"other labels":                      {Service{Meta: Meta{Ref: Ref{Namespace: "team"}}, Selector: map[string]string{"app": "db"}}, false},
		"its name, of another namespace":    {Service{Meta: Meta{Ref: Ref{Namespace: "other"}}, Workload: "web-1"}, false},
		"neither":                           {Service{Meta: Meta{Ref: Ref{Namespace: "team"}}}, false},
	} {
		if got := c.s.Selects(p); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
