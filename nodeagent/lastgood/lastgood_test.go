package lastgood

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

const clusterURL = "type.googleapis.com/envoy.config.cluster.v3.Cluster"

func resource(t testing.TB, name, version string) Resource {
	t.Helper()
	r, err := NewResource(&discoveryv3.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: clusterURL, Value: []byte(name)}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sample(t testing.TB) map[string]Type {
	return map[string]Type{
		clusterURL: {Version: "7", Resources: map[string]Resource{"a": resource(t, "a", "1"), "b": resource(t, "b", "2")}},
		"empty":    {Resources: map[string]Resource{}},
		"eds":      {Resources: map[string]Resource{"x": Gone()}},
	}
}

func TestEncodeDecode(t *testing.T) {
	data := encode("proxy", sample(t))
	id, types, err := decode(data)
	if err != nil || id != "proxy" || len(types) != 3 {
		t.Fatalf("decoded %q %+v, %v", id, types, err)
	}
	if again := encode(id, types); !bytes.Equal(again, data) {
		t.Fatal("encoded again it is different")
	}
	m, err := types[clusterURL].Resources["b"].Message()
	if err != nil || m.GetName() != "b" || m.GetVersion() != "2" || string(m.GetResource().GetValue()) != "b" {
		t.Fatalf("resource b is %v, %v", m, err)
	}
	if !types["eds"].Resources["x"].IsGone() || types[clusterURL].Version != "7" {
		t.Fatalf("types are %+v", types)
	}
}

func TestSecretsStayInMemory(t *testing.T) {
	types := map[string]Type{secretURL: {Resources: map[string]Resource{"tls": resource(t, "PRIVATE", "1")}}}
	if data := encode("proxy", types); bytes.Contains(data, []byte("PRIVATE")) {
		t.Fatal("a secret is in the file")
	}
}

func TestStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := NewStore(dir, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		put := func(proxy, name string) {
			s.Open(ctx, proxy).Update(clusterURL, func(ty *Type) { ty.Resources[name] = resource(t, name, "1") })
		}
		put("p", "a")
		put("p", "b")
		put("q", "c")
		if files, _ := filepath.Glob(dir + "/*"); len(files) != 0 {
			t.Fatalf("written at once: %v", files)
		}
		<-time.After(2 * debounce) // fake time
		synctest.Wait()
		other := NewStore(dir, slog.New(slog.DiscardHandler))
		other.Open(ctx, "p").View(clusterURL, func(ty Type, ok bool) {
			if !ok || len(ty.Resources) != 2 {
				t.Errorf("on disk: %+v", ty)
			}
		})
		if !other.Open(ctx, "unknown").Empty() || other.Open(ctx, "q").Empty() {
			t.Error("proxies are mixed up")
		}
		s.Keep(ctx, func(id string) bool { return id == "p" })
		if files, _ := filepath.Glob(dir + "/*"); len(files) != 1 {
			t.Errorf("files after q was removed: %v", files)
		}
		put("p", "last")
		cancel()
		<-done
		NewStore(dir, slog.New(slog.DiscardHandler)).Open(t.Context(), "p").View(clusterURL, func(ty Type, _ bool) {
			if _, ok := ty.Resources["last"]; !ok {
				t.Error("the last change was not written at the end")
			}
		})
	})
}

func TestCorruptFileIsNoConfiguration(t *testing.T) {
	dir := t.TempDir()
	var log strings.Builder
	s := NewStore(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err := os.WriteFile(s.path("p"), []byte("WRITCFG1 but not really"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !s.Open(t.Context(), "p").Empty() {
		t.Fatal("a corrupt file was used")
	}
	if _, err := os.Stat(s.path("p") + ".corrupt"); err != nil || !strings.Contains(log.String(), "WARN") {
		t.Fatalf("no copy or no warning: %v, log %q", err, log.String())
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode("proxy", sample(f)))
	f.Add(encode("", nil))
	f.Add([]byte{0x0a, 0x05, 'x'})
	f.Add([]byte{0x12, 0x02, 0x22, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		id, types, err := decode(data)
		if err != nil {
			if types != nil {
				t.Fatal("something was taken from a wrong file")
			}
			return
		}
		again := encode(id, types)
		id2, types2, err := decode(again)
		if err != nil || id2 != id || !bytes.Equal(encode(id2, types2), again) {
			t.Fatalf("what was decoded does not come back: %v", err)
		}
	})
}
