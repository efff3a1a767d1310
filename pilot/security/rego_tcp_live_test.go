package security

import (
	"fmt"
	"testing"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/pilot/model"
)

func tcpPort() model.WorkloadPort {
	return model.WorkloadPort{Name: "tcp", Protocol: model.TCP, Port: 8000, App: 8000}
}

// connectionAttempt is a connection and whether it gets through.
type connectionAttempt struct {
	identity, from string
	passes         bool
}

// TestRegoTCPLive: RegoPolicies hold for connections too. What is compiled says what
// authz says, and is not asked about; the rest is closed when authz is gone, unless it
// is open.
func TestRegoTCPLive(t *testing.T) {
	t.Parallel()
	const head = "package p\ndefault allow := false\n"
	const clock = "; time.now_ns() > 0 }"
	const caller = `allow if { endswith(input.attributes.source.principal, "/sa/sleep")`
	cases := []struct {
		name     string
		policies []*model.RegoPolicy
		// runs is where the first is decided; asks says that authz is asked.
		runs  string
		tries []connectionAttempt
	}{
		{"caller", []*model.RegoPolicy{regoOf("r", head+caller+" }")}, regoInEnvoy, []connectionAttempt{{"", "", false}, {sleep, "", true}, {curlFoo, "", false}}},
		{"nobody", []*model.RegoPolicy{regoOf("r", head+"allow if not input.attributes.source.principal")}, regoInEnvoy, []connectionAttempt{{"", "", true}, {sleep, "", false}}},
		{"anybody", []*model.RegoPolicy{regoOf("r", head+"allow if input.source_principal != \"spiffe://cluster.local/ns/foo/sa/curl\"")}, regoInEnvoy, []connectionAttempt{{"", "", false}, {sleep, "", true}, {curlFoo, "", false}}},
		{"address", []*model.RegoPolicy{regoOf("r", head+`allow if net.cidr_contains("127.0.0.8/31", input.attributes.source.address.socketAddress.address)`)}, regoInEnvoy, []connectionAttempt{{"", "127.0.0.9", true}, {sleep, "127.0.0.8", true}, {"", "127.0.0.7", false}}},
		{"always", []*model.RegoPolicy{regoOf("r", "package p\ndefault allow := true")}, regoInEnvoy, []connectionAttempt{{"", "", true}, {sleep, "", true}}},
		{"never", []*model.RegoPolicy{regoOf("r", head)}, regoInEnvoy, []connectionAttempt{{"", "", false}, {sleep, "", false}}},
		{"clock", []*model.RegoPolicy{regoOf("r", head+caller+clock)}, regoInAuthz, []connectionAttempt{{"", "", false}, {sleep, "", true}, {curlFoo, "", false}}},
		// What is said of requests is undefined, and a rule of it does not hold.
		{"requests", []*model.RegoPolicy{regoOf("r", head+`allow if input.attributes.request.http.method == "GET"`)}, regoInAuthz, []connectionAttempt{{"", "", false}, {sleep, "", false}}},
		{"requests or caller", []*model.RegoPolicy{regoOf("r", head+`allow if input.parsed_path[0] == "x"`+"\n"+caller+" }")}, regoInAuthz, []connectionAttempt{{"", "", false}, {sleep, "", true}}},
		{"no bad request", []*model.RegoPolicy{regoOf("r", head+`allow if not input.attributes.request.http.method == "GET"`)}, regoInAuthz, []connectionAttempt{{"", "", true}, {sleep, "", true}}},
		{"two", []*model.RegoPolicy{regoOf("r", head+caller+" }"), regoOf("s", head+`allow if { contains(input.attributes.source.principal, "/ns/default/")`+clock)}, regoInEnvoy, []connectionAttempt{{"", "", false}, {sleep, "", true}, {curlFoo, "", false}}},
		{"observed", []*model.RegoPolicy{observed(regoOf("r", head))}, regoInAuthz, []connectionAttempt{{"", "", true}, {sleep, "", true}}},
		{"open", []*model.RegoPolicy{failOpen(regoOf("r", head+caller+clock))}, regoInAuthz, []connectionAttempt{{"", "", false}, {sleep, "", true}}},
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		inbounds := map[string]inbound{}
		authz := &regoAuthz{programs: map[string]*rego.Program{}, observed: map[string]bool{}}
		address, stop := authz.serve(t)
		add := func(name string, policies []*model.RegoPolicy, address string) {
			m := newMesh(t, "")
			m.Deciders.Authz = address
			for i, p := range policies {
				named := *p
				named.Name = fmt.Sprintf("p%d-%d", len(inbounds), i)
				m.RegoPolicies = append(m.RegoPolicies, &named)
				authz.add(t, &named)
				authz.observed[refOf(&named)] = named.Observe
			}
			out, err := compiler(t, m).TCP(workload(), tcpPort())
			if err != nil {
				t.Fatal(err)
			}
			inbounds[name] = inbound{tcp: out, mtls: true}
		}
		for _, c := range cases {
			add(c.name, c.policies, address)
			add(c.name+" all asked", unsplit(c.policies), address)
			add(c.name+" without authz", c.policies, "")
			m := newMesh(t, "")
			m.RegoPolicies = c.policies
			if got := compiler(t, m).RegoPlacements(workload(), tcpPort())[0]; got.Runs != c.runs || (c.runs == regoInAuthz) != (len(got.Remote) > 0) {
				t.Errorf("%s runs in %s (%v), want %s", c.name, got.Runs, got.Remote, c.runs)
			}
		}
		p := start(t, bin, inbounds)
		for _, c := range cases {
			for _, r := range c.tries {
				for _, name := range []string{c.name, c.name + " all asked"} {
					before := authz.asked.Load()
					if got := p.connect(name, r.identity, r.from); got != r.passes {
						t.Errorf("%s: %+v: passes %v", name, r, got)
					}
					asked := authz.asked.Load() > before
					if want := name != c.name || c.runs == regoInAuthz || c.name == "two" && r.identity == sleep; asked != want {
						t.Errorf("%s: %+v: asked %v", name, r, asked)
					}
				}
			}
		}
		stop()
		for _, c := range cases {
			for _, r := range c.tries {
				open := c.name == "open" || c.name == "observed"
				want := open || c.runs == regoInEnvoy && c.name != "two" && r.passes
				for _, name := range []string{c.name, c.name + " without authz"} {
					if got := p.connect(name, r.identity, r.from); got != want {
						t.Errorf("%s, authz is gone: %+v: passes %v", name, r, got)
					}
				}
			}
		}
	})
}

func observed(p *model.RegoPolicy) *model.RegoPolicy { p.Observe = true; return p }

func failOpen(p *model.RegoPolicy) *model.RegoPolicy { p.FailOpen = true; return p }

// unsplit are policies of which nothing is known.
func unsplit(policies []*model.RegoPolicy) []*model.RegoPolicy {
	var out []*model.RegoPolicy
	for _, p := range policies {
		q := *p
		q.Form = nil
		out = append(out, &q)
	}
	return out
}

// TestRegoTCPPorts: a port that a policy names is known when the port is compiled, and
// an edit of a policy that authz decides changes what the Envoy is given, so that
// connections drain.
func TestRegoTCPPorts(t *testing.T) {
	m := newMesh(t, "")
	m.Deciders.Authz = "127.0.0.1:1"
	filters := func(module string, port uint32) string {
		m.RegoPolicies = []*model.RegoPolicy{regoOf("r", module)}
		at := tcpPort()
		at.Port = port
		out, err := compiler(t, m).TCP(workload(), at)
		if err != nil {
			t.Fatal(err)
		}
		names := ""
		for _, f := range out.Filters {
			names += f.GetName() + " " + f.GetTypedConfig().String() + "\n"
		}
		return names
	}
	const ports = "package p\nallow if input.attributes.destination.address.socketAddress.portValue == 9000"
	none := filters("package p\ndefault allow := true", 9000)
	if got := filters(ports, 9000); got != none {
		t.Errorf("the port that is allowed is asked about: %s", got)
	}
	if got := filters(ports, 9001); got == none {
		t.Error("the port that is not allowed is open")
	}
	if got := filters(ports, 0); got == none {
		t.Error("ports without a name are open")
	}
	one, two := filters("package p\nallow if time.now_ns() > 1", 9000), filters("package p\nallow if time.now_ns() > 2", 9000)
	if one == two || one == none {
		t.Error("an edit changes nothing")
	}
}
