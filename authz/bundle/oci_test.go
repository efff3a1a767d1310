package bundle

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/writ-mesh/writ/authz/bundletest"
)

// registry is an OCI registry (distribution specification 1.1) with one image,
// whose only layer is a bundle, behind a user and a password.
type registry struct {
	*httptest.Server
	mu       sync.Mutex
	blobs    map[string][]byte
	manifest []byte
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func newRegistry(t testing.TB) *registry {
	r := &registry{}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *registry) push(bundle []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	config := []byte("{}")
	r.blobs = map[string][]byte{digest(bundle): bundle, digest(config): config}
	r.manifest = []byte(fmt.Sprintf(`{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": %q, "size": %d},
		"layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": %q, "size": %d}]}`,
		digest(config), len(config), digest(bundle), len(bundle)))
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if want := "Basic " + base64.StdEncoding.EncodeToString([]byte("ann:pw")); req.Header.Get("Authorization") != want {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	content, kind := r.manifest, "application/vnd.oci.image.manifest.v1+json"
	if _, name, ok := strings.Cut(req.URL.Path, "/blobs/"); ok {
		content, kind = r.blobs[name], "application/octet-stream"
	} else if !strings.HasSuffix(req.URL.Path, "/manifests/1") && !strings.HasSuffix(req.URL.Path, "/manifests/"+digest(content)) {
		content = nil
	}
	if content == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", digest(content))
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	if req.Method != http.MethodHead {
		_, _ = w.Write(content)
	}
}

// A bundle from a registry, its next version under the same tag, and one that is
// too large.
func TestOCI(t *testing.T) {
	t.Parallel() // it mostly waits
	reg := newRegistry(t)
	reg.push(bundletest.Tarball(t, policy(1)))
	host := strings.TrimPrefix(reg.URL, "http://")
	o := options(fmt.Sprintf(`{"services": {"s": {"url": %q, "type": "oci", "credentials": {"bearer": {"scheme": "Basic", "token": "ann:pw"}}}},
		"bundles": {"b": {"service": "s", "resource": "%s/policies/shop:1", "polling": {"min_delay_seconds": 0, "max_delay_seconds": 1}}}, "persistence_directory": %q}`, reg.URL, host, t.TempDir()))
	o.Limits = defaultLimits()
	o.Limits.Unpacked = 1 << 20
	r := run(t, o)
	r.decides(t, "1 1")
	r.ready(t)
	reg.push(bundletest.Tarball(t, policy(2)))
	r.decides(t, "2 2")
	reg.push(bundletest.Tarball(t, map[string]string{"data.json": strings.Repeat(" ", 2<<20)}))
	r.fails(t, "b", "larger than the limit")
	if got := r.ask(t); got != "2 2" {
		t.Errorf("decides %q", got)
	}
	reg.push(bundletest.Tarball(t, policy(3)))
	r.decides(t, "3 3")
}
