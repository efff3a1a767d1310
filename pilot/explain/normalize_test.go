package explain

import (
	"testing"

	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestNormalize has what translate.TestPathNormalizationLive sees real Envoys make of
// paths, in the modes NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES.
func TestNormalize(t *testing.T) {
	modes := []meshv1.MeshConfig_ProxyPathNormalization_NormalizationType{
		meshv1.MeshConfig_ProxyPathNormalization_NONE, meshv1.MeshConfig_ProxyPathNormalization_BASE,
		meshv1.MeshConfig_ProxyPathNormalization_MERGE_SLASHES, meshv1.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES,
	}
	for path, want := range map[string][4]string{
		"/admin":               {"/admin", "/admin", "/admin", "/admin"},
		"/admin?x=//%2e":       {"/admin?x=//%2e", "/admin?x=//%2e", "/admin?x=//%2e", "/admin?x=//%2e"},
		"/Admin/":              {"/Admin/", "/Admin/", "/Admin/", "/Admin/"},
		"/./admin":             {"/./admin", "/admin", "/admin", "/admin"},
		"/public/../admin":     {"/public/../admin", "/admin", "/admin", "/admin"},
		"/public/%2e%2e/admin": {"/public/%2e%2e/admin", "/admin", "/admin", "/admin"},
		"//admin":              {"//admin", "//admin", "/admin", "/admin"},
		"/public//../admin":    {"/public//../admin", "/public/admin", "/public/admin", "/public/admin"},
		`/\admin`:              {`/\admin`, "//admin", "/admin", "/admin"},
		`/public\..\admin`:     {`/public\..\admin`, "/admin", "/admin", "/admin"},
		"/%2fadmin":            {"/%2fadmin", "/%2fadmin", "/%2fadmin", "/admin"},
		"/public%2F..%2Fadmin": {"/public%2F..%2Fadmin", "/public%2F..%2Fadmin", "/public%2F..%2Fadmin", "/admin"},
		"/%5cadmin":            {"/%5cadmin", "/%5cadmin", "/%5cadmin", "/admin"},
		"/admin;x":             {"/admin;x", "/admin;x", "/admin;x", "/admin;x"},
		"/%61dmin":             {"/%61dmin", "/admin", "/admin", "/admin"},
	} {
		for i, mode := range modes {
			m := &model.Mesh{Config: &meshv1.MeshConfig{PathNormalization: &meshv1.MeshConfig_ProxyPathNormalization{Normalization: mode}}}
			if got, ok := normalize(m, path); !ok || got != want[i] {
				t.Errorf("%s of %s: %q, want %q", mode, path, got, want[i])
			}
		}
	}
	for path, want := range map[string]bool{"admin": false, "/a/%2e%2e;x/b": false, "/a/..%3B/b": false, "/a;..;/b": true, "/a?x=/..;": true} {
		if _, ok := normalize(&model.Mesh{Config: &meshv1.MeshConfig{}}, path); ok != want {
			t.Errorf("%s is taken: %v, want %v", path, ok, want)
		}
	}
}
