package meshdir

import (
	"cmp"
	"net/netip"
	"os"

	"github.com/writ-mesh/writ/pilot/model"
)

// Assume reads a mesh directory of which nothing runs, and gives its mesh as it would
// be with one replica of each LocalWorkload and a proxy for each Gateway. Where the
// directory has run, InstancesFile has the addresses that they keep; others are made
// up. The problems are those of the directory.
func Assume(options Options) (*model.Mesh, []Problem) {
	r := NewReader(options)
	files, unreadable, err := readDir(r.options.Dir)
	if err != nil {
		return nil, []Problem{{Message: err.Error()}}
	}
	in, mesh, problems := parseAndSettle(files, nil, &r.options)
	problems = unique(append(problems, unreadable...))
	data, err := MarshalInstances(assumed(planOf(in, mesh), instancesOf(r.options.InstancesFile)))
	if err != nil {
		return nil, append(problems, Problem{Message: err.Error()})
	}
	_, mesh, _ = parseAndSettle(files, data, &r.options)
	return mesh, problems
}

// ParseVersion makes a mesh of what pilot has in force, see Reader.Contents. Other
// files that objects name are not looked at.
func ParseVersion(contents map[string][]byte, options Options) (*model.Mesh, []Problem) {
	files := map[string][]byte{}
	for name, data := range contents {
		if name != instancesKey {
			files[name] = data
		}
	}
	return Parse(files, contents[instancesKey], options)
}

// Contents gives the files that a mesh was made of, which Read gave lately; the file
// of instances has a name that no other can have. Nil if it was too long ago.
func (r *Reader) Contents(mesh *model.Mesh) map[string][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.versionOfMesh(mesh)
	if v == nil {
		return nil
	}
	out := make(map[string][]byte, len(v))
	for name, f := range v {
		out[name] = f.data
	}
	return out
}

// instancesOf gives the replicas of a file by "<namespace>/<name>", as far as it can be
// read.
func instancesOf(file string) map[string]Instance {
	out := map[string]Instance{}
	data, err := os.ReadFile(file)
	if err != nil {
		return out
	}
	instances, _ := ParseInstances(file, data)
	for _, in := range instances {
		out[in.Namespace+"/"+in.Name] = in
	}
	return out
}

func assumed(plan Plan, known map[string]Instance) []Instance {
	out := madeUp(plan)
	for i, in := range out {
		if is, ok := known[in.Namespace+"/"+in.Name]; ok && (is.Spec.Type == "gateway") == (in.Spec.Type == "gateway") {
			out[i].Spec.Address, out[i].Spec.GatewayPorts = is.Spec.Address, is.Spec.GatewayPorts
		}
	}
	return out
}

func madeUp(plan Plan) []Instance {
	at := netip.AddrFrom4([4]byte{127, 255, 0, 0})
	var out []Instance
	for _, w := range plan.Workloads {
		at = at.Next()
		in := Instance{Name: w.Name + "-1", Namespace: w.Namespace, Labels: w.Labels, Spec: InstanceSpec{ServiceAccount: w.Spec.ServiceAccount, Address: at.String()}}
		for _, p := range w.Spec.Ports {
			in.Spec.Ports = append(in.Spec.Ports, InstancePort{Name: p.Name, Protocol: cmp.Or(p.AppProtocol, p.Protocol), Port: p.Port, App: cmp.Or(p.App, p.Port)})
		}
		out = append(out, in)
	}
	names := map[string]bool{}
	for _, g := range plan.Gateways {
		at = at.Next()
		name, account := g.Name, g.ServiceAccount
		if names[name] { // as writ up has it: the second of a name is named after its namespace too
			name += "-" + g.Object.Namespace
			if account == g.Name {
				account = name
			}
		}
		names[name] = true
		out = append(out, Instance{
			Name: name, Namespace: g.Namespace, Labels: g.Labels,
			Spec: InstanceSpec{ServiceAccount: account, Address: at.String(), Type: "gateway", Gateway: g.Object.Namespace + "/" + g.Object.Name},
		})
	}
	return out
}
