package security

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/writ-mesh/writ/pilot/model"
)

// newMesh makes a mesh of the given YAML documents. Policies of our own kinds are
// appended by the tests themselves.
func newMesh(t testing.TB, documents string) *model.Mesh {
	t.Helper()
	m := &model.Mesh{
		Config:        &meshv1.MeshConfig{},
		TrustDomain:   "cluster.local",
		RootNamespace: "istio-system",
		DomainSuffix:  "cluster.local",
	}
	for _, doc := range strings.Split(documents, "\n---\n") {
		addDocument(t, m, doc)
	}
	return m
}

func addDocument(t testing.TB, m *model.Mesh, doc string) {
	t.Helper()
	var object struct {
		Kind     string
		Metadata struct {
			Name, Namespace     string
			Labels, Annotations map[string]string
			CreationTimestamp   time.Time
		}
		Spec json.RawMessage
	}
	if strings.TrimSpace(doc) == "" {
		return
	}
	if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
		t.Fatalf("document: %v\n%s", err, doc)
	}
	meta := model.Meta{
		Ref:         model.Ref{Kind: object.Kind, Namespace: object.Metadata.Namespace, Name: object.Metadata.Name},
		Labels:      object.Metadata.Labels,
		Annotations: object.Metadata.Annotations,
		Created:     object.Metadata.CreationTimestamp,
	}
	if meta.Namespace == "" {
		meta.Namespace = "default"
	}
	switch object.Kind {
	case "PeerAuthentication":
		m.PeerAuthentications = append(m.PeerAuthentications, &model.PeerAuthentication{Meta: meta, Spec: spec(t, object.Spec, &security.PeerAuthentication{})})
	case "RequestAuthentication":
		m.RequestAuthentications = append(m.RequestAuthentications, &model.RequestAuthentication{Meta: meta, Spec: spec(t, object.Spec, &security.RequestAuthentication{})})
	case "AuthorizationPolicy":
		m.AuthorizationPolicies = append(m.AuthorizationPolicies, &model.AuthorizationPolicy{Meta: meta, Spec: spec(t, object.Spec, &security.AuthorizationPolicy{})})
	case "Gateway":
		m.Gateways = append(m.Gateways, &model.Gateway{Meta: meta, Spec: spec(t, object.Spec, &networking.Gateway{})})
	case "MeshConfig":
		m.Config = spec(t, object.Spec, &meshv1.MeshConfig{})
	default:
		t.Fatalf("unknown kind %q", object.Kind)
	}
}

func spec[M proto.Message](t testing.TB, raw json.RawMessage, into M) M {
	t.Helper()
	if len(raw) == 0 {
		return into
	}
	if err := protojson.Unmarshal(raw, into); err != nil {
		t.Fatalf("spec: %v\n%s", err, raw)
	}
	return into
}

// workload is the sidecar that the tests compile for.
func workload() *model.Proxy {
	return &model.Proxy{
		ID: "sidecar~127.0.1.1~httpbin-1.default~default.svc.cluster.local", Type: model.SidecarProxy,
		Name: "httpbin-1", Namespace: "default", ServiceAccount: "httpbin",
		Labels: map[string]string{"app": "httpbin", "version": "v1"},
		Ports:  []model.WorkloadPort{httpPort()},
	}
}

func httpPort() model.WorkloadPort {
	return model.WorkloadPort{Name: "http", Protocol: model.HTTP, Port: 8000, App: 8000}
}

func compiler(t testing.TB, m *model.Mesh) *Compiler {
	t.Helper()
	c, err := New(m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func compileHTTP(t testing.TB, m *model.Mesh, p *model.Proxy) *HTTP {
	t.Helper()
	out, err := compiler(t, m).HTTP(p, httpPort())
	if err != nil {
		t.Fatal(err)
	}
	return out
}
