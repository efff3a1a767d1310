package translate

import (
	"bufio"
	"cmp"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestPathNormalizationLive has a real Envoy decide by a path that is written in
// many ways, for each normalization that MeshConfig has: what is refused, and what the
// program sees of the rest.
func TestPathNormalizationLive(t *testing.T) {
	t.Parallel()
	modes := []meshv1.MeshConfig_ProxyPathNormalization_NormalizationType{
		meshv1.MeshConfig_ProxyPathNormalization_NONE, meshv1.MeshConfig_ProxyPathNormalization_BASE,
		meshv1.MeshConfig_ProxyPathNormalization_MERGE_SLASHES, meshv1.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES,
		meshv1.MeshConfig_ProxyPathNormalization_DEFAULT,
	}
	const malformed = "400 Bad Request"
	// What the program sees in each mode, "" if /admin is what is decided about.
	paths := map[string][5]string{
		"/admin":               {"", "", "", "", ""},
		"/admin?x=/y":          {"", "", "", "", ""},
		"/public":              {"/public", "/public", "/public", "/public", "/public"},
		"/Admin":               {"/Admin", "/Admin", "/Admin", "/Admin", "/Admin"},
		"/admin/":              {"/admin/", "/admin/", "/admin/", "/admin/", "/admin/"},
		"/./admin":             {"/./admin", "", "", "", ""},
		"/public/../admin":     {"/public/../admin", "", "", "", ""},
		"/public/%2e%2e/admin": {"/public/%2e%2e/admin", "", "", "", ""},
		"//admin":              {"//admin", "//admin", "", "", "//admin"},
		"/public//../admin":    {"/public//../admin", "/public/admin", "/public/admin", "/public/admin", "/public/admin"},
		`/\admin`:              {`/\admin`, "//admin", "", "", "//admin"},
		`/public\..\admin`:     {`/public\..\admin`, "", "", "", ""},
		"/%2fadmin":            {"/%2fadmin", "/%2fadmin", "/%2fadmin", "", "/%2fadmin"},
		"/public%2F..%2Fadmin": {"/public%2F..%2Fadmin", "/public%2F..%2Fadmin", "/public%2F..%2Fadmin", "", "/public%2F..%2Fadmin"},
		"/%5cadmin":            {"/%5cadmin", "/%5cadmin", "/%5cadmin", "", "/%5cadmin"},
		"/admin;x":             {"/admin;x", "/admin;x", "/admin;x", "/admin;x", "/admin;x"},
		"/%61dmin":             {"/%61dmin", "", "", "", ""},
		// Parameters of dot segments are dropped first (CVE-2026-73551), of encoded ones they are
		// found afterwards, and refused.
		"/public/..;/admin":     {malformed, "", "", "", ""},
		"/public/..;x=y/admin":  {malformed, "", "", "", ""},
		"/.;/admin":             {malformed, "", "", "", ""},
		"/public/%2e%2e;/admin": {"/public/%2e%2e;/admin", malformed, malformed, malformed, malformed},
		"/public/..%3b/admin":   {malformed, malformed, malformed, malformed, malformed},
	}
	for i, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			m := newLive(t, byte(180+i))
			m.mesh.Config.PathNormalization = &meshv1.MeshConfig_ProxyPathNormalization{Normalization: mode}
			api := m.workload("api-1", "default", "api", map[string]string{"app": "api"}, port(t, "http", 8000))
			m.apply("kind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}")
			m.echo(api, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RequestURI) })
			m.start()
			for path, want := range paths {
				if got := rawGet(t, hostPort(api.Address, 8000), path); got != cmp.Or(want[i], "403 Forbidden") {
					t.Errorf("%s: %q, want %q", path, got, want[i])
				}
			}
		})
	}
}

// TestPathNormalizationEverywhere: every connection manager of every proxy has it.
func TestPathNormalizationEverywhere(t *testing.T) {
	m := newMesh(t)
	m.mesh.Config.PathNormalization = &meshv1.MeshConfig_ProxyPathNormalization{Normalization: meshv1.MeshConfig_ProxyPathNormalization_MERGE_SLASHES}
	api := m.workload("api-1", "default", "api", map[string]string{"app": "api"}, "http:8000", "grpc:9000")
	redirected := m.workload("web-1", "default", "web", map[string]string{"app": "web"}, "http:8000")
	redirected.Interception = model.Redirect
	m.service("api", "default", api)
	gateway := m.gateway("gw", map[string]string{"istio": "gw"})
	m.apply("kind: Gateway\nmetadata: {name: gw, namespace: istio-system}\nspec: {selector: {istio: gw}, servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}]}")
	for _, p := range []*model.Proxy{api, redirected, gateway} {
		managers, merging := 0, 0
		for _, l := range m.snapshot(p).Listeners {
			text := protojson.Format(l.Message)
			managers += strings.Count(text, "v3.HttpConnectionManager\"")
			merging += len(regexp.MustCompile(`"mergeSlashes":\s*true`).FindAllString(text, -1))
		}
		if managers == 0 || merging != managers {
			t.Errorf("%s: %d of %d connection managers merge slashes", p.Name, merging, managers)
		}
	}
}

// rawGet sends a path as it is written, and gives the body, or the status if it is
// not 200.
func rawGet(t *testing.T, address, path string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, bound)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(bound))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	body := make([]byte, 200)
	n, _ := resp.Body.Read(body)
	return string(body[:n])
}
