package translate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sort"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	yamlv3 "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	securityv1 "istio.io/api/security/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
)

// meshBuilder makes small meshes for tests.
type meshBuilder struct {
	tb   testing.TB
	mesh *model.Mesh
	next int
	net  byte // third byte of the loopback addresses, so that parallel tests do not meet
}

func newMesh(tb testing.TB) *meshBuilder {
	return &meshBuilder{tb: tb, net: 1, mesh: &model.Mesh{
		Config:        &meshv1.MeshConfig{ConnectTimeout: durationpb.New(10 * time.Second), LocalityLbSetting: &networking.LocalityLoadBalancerSetting{}},
		TrustDomain:   "cluster.local",
		RootNamespace: "istio-system",
		DomainSuffix:  "cluster.local",
		Dir:           "/mesh",
		Secrets:       map[string]*model.Secret{},
	}}
}

// workload adds a sidecar; ports are written name:port[:app].
func (b *meshBuilder) workload(name, namespace, account string, labels map[string]string, ports ...string) *model.Proxy {
	b.next++
	addr := netip.AddrFrom4([4]byte{127, 77, b.net, byte(b.next)})
	p := &model.Proxy{
		ID:   fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", addr, name, namespace, namespace),
		Name: name, Namespace: namespace, ServiceAccount: account, Labels: labels, Node: "local", Address: addr,
	}
	for _, text := range ports {
		var wp model.WorkloadPort
		parts := strings.Split(text, ":")
		wp.Name, wp.Protocol = parts[0], protocolNamed(strings.Split(parts[0], "-")[0])
		_, err := fmt.Sscan(parts[1], &wp.Port)
		if err != nil {
			b.tb.Fatal(err)
		}
		wp.App, wp.AppAddress = wp.Port+10000, netip.MustParseAddr("127.0.0.1")
		if len(parts) > 2 {
			if _, err := fmt.Sscan(parts[2], &wp.App); err != nil {
				b.tb.Fatal(err)
			}
		}
		p.Ports = append(p.Ports, wp)
	}
	b.mesh.Proxies = append(b.mesh.Proxies, p)
	return p
}

// service adds <name>.<namespace>.svc.cluster.local over the proxies, with
// their first proxy's ports.
func (b *meshBuilder) service(name, namespace string, proxies ...*model.Proxy) *model.Service {
	s := &model.Service{
		Meta:     model.Meta{Ref: model.Ref{Kind: "Service", Namespace: namespace, Name: name}},
		Hostname: name + "." + namespace + ".svc.cluster.local",
	}
	for _, wp := range proxies[0].Ports {
		s.Ports = append(s.Ports, model.ServicePort{Name: wp.Name, Protocol: wp.Protocol, Port: wp.Port})
	}
	for _, p := range proxies {
		e := &model.Endpoint{
			Address: p.Address.String(), Labels: p.Labels, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount,
			Weight: 1, Proxy: p, Ports: map[uint32]uint32{},
		}
		for _, wp := range p.Ports {
			e.Ports[wp.Port] = wp.Port
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	b.addService(s)
	return s
}

func (b *meshBuilder) addService(s *model.Service) {
	b.mesh.Services = append(b.mesh.Services, s)
	sort.SliceStable(b.mesh.Services, func(i, j int) bool { return b.mesh.Services[i].Hostname < b.mesh.Services[j].Hostname })
}

// gateway adds a proxy run for the Gateway object of that name.
func (b *meshBuilder) gateway(name string, labels map[string]string) *model.Proxy {
	b.next++
	addr := netip.AddrFrom4([4]byte{127, 77, b.net, byte(b.next)})
	p := &model.Proxy{
		ID:   fmt.Sprintf("router~%s~%s.istio-system~istio-system.svc.cluster.local", addr, name),
		Type: model.GatewayProxy, Name: name, Namespace: "istio-system", ServiceAccount: "gateway", Labels: labels, Address: addr,
		GatewayPorts: map[uint32]uint32{80: 8080, 443: 8443},
	}
	b.mesh.Proxies = append(b.mesh.Proxies, p)
	return p
}

// apply reads Istio's objects from YAML. It knows those kinds that matter here.
func (b *meshBuilder) apply(text string) *meshBuilder {
	b.tb.Helper()
	dec := yamlv3.NewDecoder(strings.NewReader(text))
	for {
		var doc map[string]any
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return b
		} else if err != nil {
			b.tb.Fatal(err)
		}
		if doc == nil {
			continue
		}
		raw, err := yamlv3.Marshal(doc)
		if err != nil {
			b.tb.Fatal(err)
		}
		b.applyOne(raw)
	}
}

func (b *meshBuilder) applyOne(raw []byte) {
	b.tb.Helper()
	js, err := yaml.YAMLToJSON(raw)
	if err != nil {
		b.tb.Fatal(err)
	}
	var head struct {
		Kind     string
		Metadata struct {
			Name, Namespace     string
			Labels, Annotations map[string]string
		}
		Spec map[string]any
	}
	if err := yaml.Unmarshal(raw, &head); err != nil {
		b.tb.Fatal(err)
	}
	spec := js[bytes.Index(js, []byte(`"spec":`))+len(`"spec":`):]
	spec = spec[:len(spec)-1]
	ns := head.Metadata.Namespace
	if ns == "" {
		ns = "default"
	}
	meta := model.Meta{Ref: model.Ref{Kind: head.Kind, Namespace: ns, Name: head.Metadata.Name, File: "in.yaml"}, Annotations: head.Metadata.Annotations}
	m := b.mesh
	switch head.Kind {
	case "VirtualService":
		m.VirtualServices = append(m.VirtualServices, &model.VirtualService{Meta: meta, Spec: into(b, spec, &networking.VirtualService{})})
	case "DestinationRule":
		m.DestinationRules = append(m.DestinationRules, &model.DestinationRule{Meta: meta, Spec: into(b, spec, &networking.DestinationRule{})})
	case "Gateway":
		m.Gateways = append(m.Gateways, &model.Gateway{Meta: meta, Spec: into(b, spec, &networking.Gateway{})})
	case "Sidecar":
		m.Sidecars = append(m.Sidecars, &model.Sidecar{Meta: meta, Spec: into(b, spec, &networking.Sidecar{})})
	case "PeerAuthentication":
		m.PeerAuthentications = append(m.PeerAuthentications, &model.PeerAuthentication{Meta: meta, Spec: into(b, spec, &securityv1.PeerAuthentication{})})
	case "AuthorizationPolicy":
		m.AuthorizationPolicies = append(m.AuthorizationPolicies, &model.AuthorizationPolicy{Meta: meta, Spec: into(b, spec, &securityv1.AuthorizationPolicy{})})
	case "ServiceEntry":
		b.serviceEntry(meta, into(b, spec, &networking.ServiceEntry{}))
	case "MeshConfig":
		into(b, spec, m.Config)
	default:
		b.tb.Fatalf("kind %s is not known to tests", head.Kind)
	}
}

// into reads the spec of an object into m.
func into[M proto.Message](b *meshBuilder, spec []byte, m M) M {
	b.tb.Helper()
	if err := protojson.Unmarshal(spec, m); err != nil {
		b.tb.Fatalf("%s: %v", spec, err)
	}
	return m
}

func (b *meshBuilder) serviceEntry(meta model.Meta, spec *networking.ServiceEntry) {
	for _, host := range spec.Hosts {
		s := &model.Service{
			Meta: meta, Hostname: host, Addresses: spec.Addresses, External: spec.Location == networking.ServiceEntry_MESH_EXTERNAL,
			ExportTo: spec.ExportTo, SubjectAltNames: spec.SubjectAltNames,
		}
		s.Resolution = map[networking.ServiceEntry_Resolution]model.Resolution{
			networking.ServiceEntry_NONE: model.None, networking.ServiceEntry_STATIC: model.Static,
			networking.ServiceEntry_DNS: model.DNS, networking.ServiceEntry_DNS_ROUND_ROBIN: model.DNSRoundRobin,
		}[spec.Resolution]
		for _, p := range spec.Ports {
			s.Ports = append(s.Ports, model.ServicePort{Name: p.Name, Protocol: protocolNamed(p.Protocol), Port: p.Number})
		}
		for _, e := range spec.Endpoints {
			out := &model.Endpoint{Address: e.Address, Labels: e.Labels, Namespace: meta.Namespace, ServiceAccount: e.ServiceAccount, Weight: e.Weight, Locality: e.Locality, Ports: map[uint32]uint32{}}
			for _, p := range spec.Ports {
				out.Ports[p.Number] = p.Number
				if n, ok := e.Ports[p.Name]; ok {
					out.Ports[p.Number] = n
				}
			}
			s.Endpoints = append(s.Endpoints, out)
		}
		if len(s.Endpoints) == 0 && s.Resolution != model.None && s.Resolution != model.Static {
			e := &model.Endpoint{Address: host, Ports: map[uint32]uint32{}}
			for _, p := range spec.Ports {
				e.Ports[p.Number] = p.Number
			}
			s.Endpoints = append(s.Endpoints, e)
		}
		b.addService(s)
	}
}

// translator compiles the mesh with the real policies.
func (b *meshBuilder) translator() *Translator {
	b.tb.Helper()
	policy, err := security.New(b.mesh)
	if err != nil {
		b.tb.Fatal(err)
	}
	t, err := New(b.mesh, policy)
	if err != nil {
		b.tb.Fatal(err)
	}
	return t
}

func (b *meshBuilder) snapshot(p *model.Proxy) *Snapshot {
	b.tb.Helper()
	s, err := b.translator().Proxy(p)
	if err != nil {
		b.tb.Fatal(err)
	}
	return s
}

// routesOf finds a route configuration.
func routesOf(t *testing.T, s *Snapshot, name string) *routev3.RouteConfiguration {
	t.Helper()
	for _, r := range s.Routes {
		if r.Name == name {
			return r.Message.(*routev3.RouteConfiguration)
		}
	}
	t.Fatalf("no route configuration %s", name)
	return nil
}
