package stack

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
)

// plan is what should run.
type plan struct {
	replicas []replica
}

// replica is one proxy with, for a sidecar, the program beside it.
type replica struct {
	instance meshdir.Instance
	// workload is the LocalWorkload, empty for a gateway.
	workload string
	// admin is the address of the proxy's own listeners (administration,
	// readiness, Prometheus): for a sidecar that of the replica.
	admin   netip.Addr
	command []string
	env     map[string]string
	// address is that of the instance: where its service ports are bound.
	address netip.Addr
	// url is where a gateway is reached, ports what it binds.
	url   string
	ports []uint32
	// where names the object that brought it about, for messages; object is that.
	where  string
	object model.Ref
}

func (r *replica) gateway() bool { return r.instance.Spec.Type == "gateway" }

func (r *replica) key() string { return r.instance.Namespace + "/" + r.instance.Name }

func (p plan) equal(o plan) bool { return reflect.DeepEqual(p, o) }

func (p plan) byKey() map[string]replica {
	out := make(map[string]replica, len(p.replicas))
	for _, r := range p.replicas {
		out[r.key()] = r
	}
	return out
}

// sameProcesses says whether processes that were started for r serve o as well:
// ports and labels reach a proxy from pilot, but a program is told its ports.
func (r *replica) sameProcesses(o replica) bool {
	if meshdir.ProxyID(r.instance) != meshdir.ProxyID(o.instance) || r.instance.Spec.ServiceAccount != o.instance.Spec.ServiceAccount || r.admin != o.admin {
		return false
	}
	if len(r.command) == 0 && len(o.command) == 0 {
		return true
	}
	return slices.Equal(r.command, o.command) && maps.Equal(r.env, o.env) && slices.Equal(r.instance.Spec.Ports, o.instance.Spec.Ports)
}

// plan reads the mesh directory and gives every replica its addresses. A
// mistake in the workloads or in mesh.yaml is an error: what to run would be a
// guess. Mistakes elsewhere are pilot's to report.
func (s *Stack) plan() (plan, error) {
	w, problems := meshdir.ReadPlan(meshdir.Options{Dir: s.p.dir, Reserved: s.reserved})
	if err := blocking(problems); err != nil {
		return plan{}, err
	}
	if s.trustDomain == "" {
		s.trustDomain, s.rootNamespace = w.Config.GetTrustDomain(), w.Config.GetRootNamespace()
		if len(w.Config.GetMeshMTLS().GetEcdhCurves()) > 0 {
			s.compliance = "pqc"
		}
	}
	if td := w.Config.GetTrustDomain(); td != s.trustDomain {
		return plan{}, fmt.Errorf("mesh.yaml: trustDomain has changed from %s to %s: stop the mesh and start it with a new --state", s.trustDomain, td)
	}
	if len(w.Workloads) == 0 && len(w.Gateways) == 0 {
		return plan{}, fmt.Errorf("%s has nothing to run: write a LocalWorkload, as examples/bookinfo/workloads.yaml does", s.p.dir)
	}
	var out plan
	for i := range w.Workloads {
		if err := s.planWorkload(&out, &w.Workloads[i]); err != nil {
			return plan{}, err
		}
	}
	if err := s.planGateways(&out, w.Gateways); err != nil {
		return plan{}, err
	}
	slices.SortFunc(out.replicas, func(a, b replica) int { return cmp.Compare(a.key(), b.key()) })
	return out, s.addr.save()
}

// blocking picks the problems without whose solution it is unknown what to run:
// those of mesh.yaml, of LocalWorkloads, and of files that cannot be read as a
// whole and are named as workloads are.
func blocking(problems []meshdir.Problem) error {
	var all problemsError
	for _, p := range meshdir.Errors(problems) {
		if p.File == "" || p.File == "mesh.yaml" || strings.HasPrefix(p.Object, "LocalWorkload ") || p.Object == "" && strings.HasPrefix(p.File, "workloads.") {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all
}

func (s *Stack) planWorkload(out *plan, w *meshdir.LocalWorkload) error {
	for i := range int(*w.Spec.Replicas) {
		name := fmt.Sprintf("%s-%d", w.Name, i+1)
		key := w.Namespace + "/" + name
		addr, err := s.addr.host(key)
		if err != nil {
			return err
		}
		r := replica{workload: w.Name, admin: addr, command: w.Spec.Command, env: w.Spec.Env, where: w.String(), object: w.Ref}
		r.address = addr
		r.instance = meshdir.Instance{
			Name: name, Namespace: w.Namespace, Labels: w.Labels,
			Spec: meshdir.InstanceSpec{ServiceAccount: w.Spec.ServiceAccount, Node: node, Address: addr.String(), Type: "sidecar"},
		}
		for _, p := range w.Spec.Ports {
			app := p.App
			if app == 0 {
				if app, err = s.addr.app(fmt.Sprintf("%s/%d", key, p.Port)); err != nil {
					return err
				}
			}
			r.instance.Spec.Ports = append(r.instance.Spec.Ports, meshdir.InstancePort{
				Name: p.Name, Protocol: cmp.Or(p.AppProtocol, p.Protocol), Port: p.Port, App: app,
			})
		}
		out.replicas = append(out.replicas, r)
	}
	return nil
}

// planGateways makes one proxy for each Gateway object. The first to use a port
// gets it on 127.0.0.1, which is what people type; another Gateway with the same
// port gets an address of its own. Who has a port or a name keeps it as long as it
// is there: a Gateway that comes later takes nothing from one that runs.
func (s *Stack) planGateways(out *plan, gateways []meshdir.GatewayPlan) error {
	names := s.gatewayNames(gateways)
	uses := make(map[string][]uint32) // by Gateway object
	moved := make(map[string]map[uint32]uint32)
	local := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for _, g := range gateways {
		key := gatewayKey(g)
		moved[key] = movedPorts(g.Ports, local)
		for _, p := range g.Ports {
			uses[key] = append(uses[key], cmp.Or(moved[key][p.Number], p.Number))
		}
	}
	taken := make(map[uint32]bool)
	for _, g := range gateways {
		key := gatewayKey(g)
		name, account := names[key], g.ServiceAccount
		if name != g.Name && account == g.Name {
			account = name // that account is the other's
		}
		admin, err := s.addr.host(g.Namespace + "/" + name)
		if err != nil {
			return err
		}
		listen := local
		r := replica{admin: admin, where: g.Object.String(), object: g.Object, ports: uses[key]}
		if slices.ContainsFunc(r.ports, func(p uint32) bool {
			holder := s.addr.Gateways[p]
			return taken[p] || holder != key && slices.Contains(uses[holder], p)
		}) {
			listen = admin
		} else {
			for _, p := range r.ports {
				taken[p], s.addr.Gateways[p] = true, key
			}
		}
		r.address = listen
		r.instance = meshdir.Instance{
			Name: name, Namespace: g.Namespace, Labels: g.Labels,
			Spec: meshdir.InstanceSpec{ServiceAccount: account, Node: node, Address: listen.String(), Type: "gateway", Gateway: key, GatewayPorts: moved[key]},
		}
		if len(g.Ports) > 0 {
			r.url = fmt.Sprintf("%s://%s:%d", gatewayScheme(g.Ports[0]), listen, r.ports[0])
		}
		out.replicas = append(out.replicas, r)
	}
	return nil
}

func gatewayKey(g meshdir.GatewayPlan) string { return g.Object.Namespace + "/" + g.Object.Name }

// gatewayNames gives each Gateway object the name of its proxy: its own, or with
// its namespace where another Gateway has that name already.
func (s *Stack) gatewayNames(gateways []meshdir.GatewayPlan) map[string]string {
	there := make(map[string]bool)
	for _, g := range gateways {
		there[gatewayKey(g)] = true
	}
	used := make(map[string]bool)
	for _, g := range gateways {
		if !there[s.addr.Names[g.Name]] {
			s.addr.Names[g.Name] = gatewayKey(g)
		}
		used[g.Name] = true
	}
	names := make(map[string]string)
	for _, g := range gateways {
		key, name := gatewayKey(g), g.Name
		for s.addr.Names[g.Name] != key && used[name] {
			name += "." + g.Object.Namespace // once more if some Gateway is named like that
		}
		names[key], used[name] = name, true
	}
	return names
}

// movedPorts maps privileged ports that this user may not bind to ports 8000
// higher, which it may.
func movedPorts(ports []meshdir.GatewayPort, addr netip.Addr) map[uint32]uint32 {
	var out map[uint32]uint32
	for _, p := range ports {
		if p.Number >= 1024 {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", addr, p.Number))
		if err == nil {
			_ = l.Close()
			continue
		}
		if errors.Is(err, os.ErrPermission) {
			if out == nil {
				out = make(map[uint32]uint32)
			}
			out[p.Number] = p.Number + 8000
		}
	}
	return out
}

func gatewayScheme(p meshdir.GatewayPort) string {
	switch {
	case p.TLS || p.Protocol == model.HTTPS:
		return "https"
	case p.Protocol.IsHTTP():
		return "http"
	default:
		return "tcp"
	}
}

// checkGatewayPorts finds out before anything is started whether somebody else
// has a gateway's port.
func (s *Stack) checkGatewayPorts(want plan) error {
	for _, r := range want.replicas {
		for _, port := range r.ports {
			l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", r.address, port))
			if errors.Is(err, syscall.EADDRINUSE) {
				who := s.p.whoListens(fmt.Sprintf("%s:%d", r.address, port))
				return fmt.Errorf("%s: port %d of %s is in use by %s: stop it, or change the server's port", r.where, port, r.address, who)
			}
			if err == nil {
				_ = l.Close()
			}
		}
	}
	return nil
}

// writeInstances tells pilot what runs. Nobody is sent to a replica whose key is
// in unready. changed says that pilot was told something else before.
func (s *Stack) writeInstances(want plan, unready map[string]bool) (changed bool, err error) {
	instances := make([]meshdir.Instance, 0, len(want.replicas))
	for _, r := range want.replicas {
		r.instance.Spec.Unready = unready[r.key()]
		instances = append(instances, r.instance)
	}
	data, err := meshdir.MarshalInstances(instances)
	if err != nil {
		return false, err
	}
	s.last = want
	if bytes.Equal(data, s.instances) {
		return false, nil
	}
	s.instances = nil
	if err := atomicfile.Write(s.p.file(instancesFile), data, 0o600); err != nil {
		return false, err
	}
	s.instances = data
	return true, nil
}
