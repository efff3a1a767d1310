package translate

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/writ-mesh/writ/pilot/model"
)

var update = flag.Bool("update", false, "write testdata/*/out.yaml anew")

// goldenMesh is the mesh that every testdata/NAME/in.yaml is applied to.
func goldenMesh(tb testing.TB) (b *meshBuilder, client, gateway *model.Proxy) {
	b = newMesh(tb)
	client = b.workload("client-1", "default", "client", map[string]string{"app": "client"}, "http:9000")
	v1 := b.workload("reviews-v1-1", "default", "reviews", map[string]string{"app": "reviews", "version": "v1"}, "http:9080", "tcp-db:9090")
	v2 := b.workload("reviews-v2-1", "default", "reviews-v2", map[string]string{"app": "reviews", "version": "v2"}, "http:9080", "tcp-db:9090")
	ratings := b.workload("ratings-1", "other", "ratings", map[string]string{"app": "ratings"}, "grpc:8080")
	b.service("client", "default", client)
	b.service("reviews", "default", v1, v2)
	b.service("ratings", "other", ratings)
	gateway = b.gateway("ingress", map[string]string{"istio": "ingress"})
	return b, client, gateway
}

// TestGolden translates each testdata/NAME/in.yaml for a sidecar and a gateway
// and compares what the objects of in.yaml shaped with out.yaml. Both Envoys
// must take the whole configuration.
func TestGolden(t *testing.T) {
	t.Parallel()
	dirs, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	var all []*Snapshot
	for _, in := range dirs {
		dir := filepath.Dir(in)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			b, client, gateway := goldenMesh(t)
			b.apply(string(text))
			got := render(t, "sidecar", b.snapshot(client)) + render(t, "gateway", b.snapshot(gateway))
			compareGolden(t, filepath.Join(dir, "out.yaml"), got)
			all = append(all, b.snapshot(client), b.snapshot(gateway))
		})
	}
	validate(t, all...)
}

func compareGolden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s differs (-want +got; go test -update writes it anew):\n%s", path, d)
	}
}

// render gives the resources with a source in in.yaml. What is the same in all
// of them (access logs, mesh TLS) is cut out.
func render(t *testing.T, title string, s *Snapshot) string {
	t.Helper()
	var out strings.Builder
	for _, kind := range []struct {
		name string
		list []Resource
	}{{"cluster", s.Clusters}, {"endpoints", s.Endpoints}, {"listener", s.Listeners}, {"route", s.Routes}, {"extension", s.Extensions}} {
		for _, r := range kind.list {
			if !slices.ContainsFunc(r.Sources, func(ref model.Ref) bool { return ref.File != "" }) {
				continue
			}
			raw, err := protojson.Marshal(r.Message)
			if err != nil {
				t.Fatal(err)
			}
			var v any
			if err := yaml.Unmarshal(raw, &v); err != nil {
				t.Fatal(err)
			}
			text, err := yaml.Marshal(abridge(v))
			if err != nil {
				t.Fatal(err)
			}
			out.WriteString("# " + title + " " + kind.name + " " + r.Name + "\n# from")
			for _, src := range r.Sources {
				out.WriteString(" " + src.ID() + ";")
			}
			out.WriteString("\n" + string(text) + "---\n")
		}
	}
	return out.String()
}

// abridge replaces what every resource of a kind repeats.
func abridge(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = abridge(v[i])
		}
	case map[string]any:
		for k, e := range v {
			switch k {
			case "accessLog", "httpFilters", "localReplyConfig", "tlsCertificateSdsSecretConfigs", "validationContextSdsSecretConfig", "edsConfig", "tlsParams", "configSource":
				v[k] = "..."
			case "circuitBreakers":
				if strings.Count(toYAML(e), "4294967295") == 4 {
					v[k] = "unlimited"
				}
			default:
				v[k] = abridge(e)
			}
		}
	}
	return v
}

func toYAML(v any) string {
	raw, err := yaml.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}
