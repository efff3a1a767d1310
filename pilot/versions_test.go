package pilot

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// TestEnvoysOfSeveralVersions: of one revision each Envoy gets what its version can
// take; the group of TLS is in the access log of those that know it.
func TestEnvoysOfSeveralVersions(t *testing.T) {
	t.Parallel()
	r := start(t, map[string]string{"one.yaml": entry("one", backend(t, "one"))})
	for i, tc := range []struct {
		version string
		groups  bool
	}{{envoytest.Newest, true}, {envoytest.Oldest, false}} {
		address := fmt.Sprintf("127.9.79.%d", i+1)
		out := runEnvoy(t, envoytest.Version(t, tc.version), r.addr, "sidecar~"+address+"~client-1.default~default.svc.cluster.local", "NONE", "DELTA_GRPC")
		client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: address + ":15007"})}, Timeout: 10 * time.Second}
		t.Cleanup(client.CloseIdleConnections)
		proctest.Until(t, bound, tc.version+" answers", func() bool {
			resp, err := client.Get("http://one.example/")
			if err != nil {
				return false
			}
			defer func() { _ = resp.Body.Close() }()
			return resp.StatusCode == http.StatusOK
		})
		proctest.Until(t, bound, tc.version+" has written its access log", func() bool { return strings.Contains(out.String(), `"authority":"one.example"`) })
		if text := out.String(); strings.Contains(text, `"downstream_tls_group"`) != tc.groups || strings.Contains(text, `"upstream_tls_group"`) != tc.groups {
			t.Errorf("the access log of %s is\n%s", tc.version, text)
		}
	}
	if n, _ := r.serving(); n != 1 {
		t.Errorf("revision %d is served", n)
	}
	r.awaitLive(t, 1)
}
