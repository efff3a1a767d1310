package meshdir

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/writ-mesh/writ/pilot/model"
)

const (
	localVersion = "local.writ.mesh/v1alpha1"
	instanceKind = "WorkloadInstance"
)

// LocalWorkload says what to run on this machine.
type LocalWorkload struct {
	model.Meta
	Spec LocalWorkloadSpec
}

// LocalWorkloadSpec is the specification as written, defaults filled in.
type LocalWorkloadSpec struct {
	// ServiceAccount is "default" if not given.
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Replicas is 1 if not given; 0 runs none.
	Replicas *int32 `json:"replicas,omitempty"`
	// Command with its arguments; empty if something else runs the program.
	Command []string            `json:"command,omitempty"`
	Env     map[string]string   `json:"env,omitempty"`
	Ports   []LocalWorkloadPort `json:"ports,omitempty"`
}

// LocalWorkloadPort is a port that the workload listens on.
type LocalWorkloadPort struct {
	Name string `json:"name,omitempty"`
	// Port is the one that callers use.
	Port uint32 `json:"port"`
	// App is the private port that the program listens on; 0: to be chosen.
	App uint32 `json:"app,omitempty"`
	// Protocol and AppProtocol both name the application protocol; without them
	// the port's name does.
	Protocol    string `json:"protocol,omitempty"`
	AppProtocol string `json:"appProtocol,omitempty"`
}

// Model gives the port's protocol.
func (p LocalWorkloadPort) Model() model.Protocol {
	named := p.AppProtocol
	if named == "" && !strings.EqualFold(p.Protocol, "TCP") {
		named = p.Protocol
	}
	return portProtocol(p.Name, named, "")
}

// maxReplicas bounds what one workload may start on one machine.
const maxReplicas = 1000

func checkLocalWorkload(c *checker) {
	s := c.object.spec.(*LocalWorkloadSpec)
	if s.ServiceAccount == "" {
		s.ServiceAccount = "default"
	}
	if s.Replicas == nil {
		one := int32(1)
		s.Replicas = &one
	}
	if !isLabel(c.object.meta.Name) || len(c.object.meta.Name) > 58 {
		c.errorf("metadata.name", "%q is not valid for a LocalWorkload: use lower-case letters, digits and '-', at most 58", shorten(c.object.meta.Name))
	}
	if !isSubdomain(s.ServiceAccount) {
		c.errorf("spec.serviceAccount", "%q is not the name of a service account", shorten(s.ServiceAccount))
	}
	if n := *s.Replicas; n < 0 || n > maxReplicas {
		c.errorf("spec.replicas", "%d replicas is out of range: it must be from 0 to %d", n, maxReplicas)
	}
	if s.Command != nil && (len(s.Command) == 0 || s.Command[0] == "") {
		c.errorf("spec.command", "the command is empty: name a program, or remove command")
	}
	for name := range s.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			c.errorf("spec.env", "%q is not the name of an environment variable", shorten(name))
		}
	}
	for i, p := range s.Ports {
		c.localPort(index("spec.ports", i), p, s.Ports[:i])
	}
}

func (c *checker) localPort(at string, p LocalWorkloadPort, before []LocalWorkloadPort) {
	c.port(at+".port", p.Port)
	if p.App != 0 {
		c.port(at+".app", p.App)
	}
	if own := []uint32{model.AdminPort, model.OutboundPort, model.InboundPort, model.ExplicitProxyPort, model.ReadinessPort, model.PrometheusPort}; slices.Contains(own, p.Port) {
		c.errorf(at+".port", "port %d belongs to the sidecar: choose another", p.Port)
	}
	if p.Name != "" && !isLabel(p.Name) {
		c.errorf(at+".name", "%q is not a port name: use lower-case letters, digits and '-'", shorten(p.Name))
	}
	if _, known := protocolOf(p.Protocol); p.Protocol != "" && !known {
		c.errorf(at+".protocol", "unknown protocol %q: it is one of %s", shorten(p.Protocol), protocolNames)
	}
	if p.Protocol != "" && p.AppProtocol != "" {
		c.errorf(at+".appProtocol", "only one of protocol and appProtocol can be given")
	}
	for _, other := range before {
		if other.Port == p.Port {
			c.errorf(at+".port", "port %d is given twice", p.Port)
		}
		if other.Name == p.Name && p.Name != "" {
			c.errorf(at+".name", "the port name %q is given twice", p.Name)
		}
	}
}

// Instance is one running replica, or gateway, and its proxy. The supervisor
// writes them into the instances file; pilot reads them.
type Instance struct {
	Name      string
	Namespace string
	Labels    map[string]string
	Spec      InstanceSpec
}

// InstanceSpec is the specification as written.
type InstanceSpec struct {
	// ServiceAccount is "default" if not given.
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Node is the node whose agent serves the proxy.
	Node string `json:"node,omitempty"`
	// Address is the IP address of the replica.
	Address string `json:"address"`
	// Interception is explicit (the default) or redirect.
	Interception string `json:"interception,omitempty"`
	// Type is sidecar (the default) or gateway.
	Type string `json:"type,omitempty"`
	// Gateway is the Gateway object that a gateway is run for, <namespace>/<name>;
	// without it that of its name.
	Gateway string `json:"gateway,omitempty"`
	// UID, if given, is the user id that the proxy's process must have.
	UID *uint32 `json:"uid,omitempty"`
	// Unready says that the proxy is configured but that no caller is sent to it:
	// it is not up yet, or about to go.
	Unready bool           `json:"unready,omitempty"`
	Ports   []InstancePort `json:"ports,omitempty"`
	// GatewayPorts maps the port of a Gateway server to the one really bound.
	GatewayPorts map[uint32]uint32 `json:"gatewayPorts,omitempty"`
}

// InstancePort is a port of a replica.
type InstancePort struct {
	Name string `json:"name,omitempty"`
	// Protocol names the application protocol, as appProtocol of a Service does;
	// without it the port's name does.
	Protocol string `json:"protocol,omitempty"`
	Port     uint32 `json:"port"`
	// App is where the program listens; the same as Port if not given.
	App uint32 `json:"app,omitempty"`
	// AppAddress is 127.0.0.1 if not given.
	AppAddress string `json:"appAddress,omitempty"`
}

func checkInstance(c *checker) {
	s := c.object.spec.(*InstanceSpec)
	if s.ServiceAccount == "" {
		s.ServiceAccount = "default"
	}
	if !isSubdomain(s.ServiceAccount) {
		c.errorf("spec.serviceAccount", "%q is not the name of a service account", shorten(s.ServiceAccount))
	}
	if !isIP(s.Address) {
		c.errorf("spec.address", "%q is not an IP address", shorten(s.Address))
	}
	if names := []string{"", "explicit", "redirect"}; !slices.Contains(names, s.Interception) {
		c.errorf("spec.interception", "unknown interception %q%s", shorten(s.Interception), didYouMean(s.Interception, names[1:]))
	}
	if names := []string{"", "sidecar", "gateway"}; !slices.Contains(names, s.Type) {
		c.errorf("spec.type", "unknown type %q%s", shorten(s.Type), didYouMean(s.Type, names[1:]))
	}
	for i, p := range s.Ports {
		at := index("spec.ports", i)
		c.port(at+".port", p.Port)
		if p.App != 0 {
			c.port(at+".app", p.App)
		}
		if p.AppAddress != "" && !isIP(p.AppAddress) {
			c.errorf(at+".appAddress", "%q is not an IP address", shorten(p.AppAddress))
		}
	}
	if s.Gateway != "" && (s.Type != "gateway" || strings.Count(s.Gateway, "/") != 1) {
		c.errorf("spec.gateway", "%q is not the <namespace>/<name> of a Gateway, for a gateway", shorten(s.Gateway))
	}
	for from, to := range s.GatewayPorts {
		c.port("spec.gatewayPorts", from)
		c.port("spec.gatewayPorts", to)
	}
}

// MarshalInstances writes the instances file: one YAML document for each
// instance, sorted by namespace and name.
func MarshalInstances(instances []Instance) ([]byte, error) {
	sorted := slices.Clone(instances)
	slices.SortFunc(sorted, func(a, b Instance) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	var out bytes.Buffer
	for _, in := range sorted {
		document := struct {
			APIVersion string         `json:"apiVersion"`
			Kind       string         `json:"kind"`
			Metadata   map[string]any `json:"metadata"`
			Spec       InstanceSpec   `json:"spec"`
		}{localVersion, instanceKind, map[string]any{"name": in.Name, "namespace": in.Namespace}, in.Spec}
		if len(in.Labels) > 0 {
			document.Metadata["labels"] = in.Labels
		}
		data, err := json.Marshal(document)
		if err != nil {
			return nil, fmt.Errorf("write instance %s/%s: %w", in.Namespace, in.Name, err)
		}
		text, err := yaml.JSONToYAML(data)
		if err != nil {
			return nil, fmt.Errorf("write instance %s/%s: %w", in.Namespace, in.Name, err)
		}
		out.WriteString("---\n")
		out.Write(text)
	}
	return out.Bytes(), nil
}

// ParseInstances reads an instances file; name is used in problems.
func ParseInstances(name string, data []byte) ([]Instance, []Problem) {
	f := newParser(&Options{}, true).parse(name, data)
	var out []Instance
	for _, o := range f.objects {
		if spec, ok := o.spec.(*InstanceSpec); ok {
			out = append(out, Instance{Name: o.meta.Name, Namespace: o.meta.Namespace, Labels: o.meta.Labels, Spec: *spec})
		}
	}
	return out, f.problems
}

// ProxyID gives the xDS node id of an instance's proxy, in Istio's form:
// <sidecar or router>~<IP>~<name>.<namespace>~<namespace>.svc.cluster.local.
func ProxyID(in Instance) string {
	role := "sidecar"
	if in.Spec.Type == "gateway" {
		role = "router"
	}
	return fmt.Sprintf("%s~%s~%s.%s~%s.svc.%s", role, in.Spec.Address, in.Name, in.Namespace, in.Namespace, domainSuffix)
}

// proxyOf gives the proxy of an instance.
func proxyOf(o *object) *model.Proxy {
	s := o.spec.(*InstanceSpec)
	address, _ := netip.ParseAddr(s.Address) // checked before
	p := &model.Proxy{
		Name: o.meta.Name, Namespace: o.meta.Namespace, ServiceAccount: s.ServiceAccount, Labels: maps.Clone(o.meta.Labels),
		Node: s.Node, Address: address, UID: s.UID, Gateway: s.Gateway, GatewayPorts: s.GatewayPorts,
	}
	if s.Type == "gateway" {
		p.Type = model.GatewayProxy
	}
	if s.Interception == "redirect" {
		p.Interception = model.Redirect
	}
	p.ID = ProxyID(Instance{Name: p.Name, Namespace: p.Namespace, Spec: *s})
	for _, port := range s.Ports {
		w := model.WorkloadPort{Name: port.Name, Port: port.Port, App: port.App, AppAddress: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
		w.Protocol = LocalWorkloadPort{Name: port.Name, Protocol: port.Protocol}.Model()
		if w.App == 0 {
			w.App = w.Port
		}
		if port.AppAddress != "" {
			w.AppAddress, _ = netip.ParseAddr(port.AppAddress) // checked before
		}
		p.Ports = append(p.Ports, w)
	}
	return p
}
