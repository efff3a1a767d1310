package authz

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/authz/bundlestatus"
	"github.com/writ-mesh/writ/authz/bundletest"
	"github.com/writ-mesh/writ/internal/proctest"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// bundleHost serves one bundle to who holds its request until there is another.
type bundleHost struct {
	*httptest.Server
	mu      sync.Mutex
	content []byte
	number  int
	served  int // the last one that was
	changed chan struct{}
}

func newBundleHost(t *testing.T) *bundleHost {
	h := &bundleHost{changed: make(chan struct{})}
	h.Server = httptest.NewServer(h)
	t.Cleanup(func() { h.CloseClientConnections(); h.Close() })
	return h
}

func (h *bundleHost) set(content []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.content, h.number = content, h.number+1
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *bundleHost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	content, etag, changed := h.content, fmt.Sprintf(`"%d"`, h.number), h.changed
	h.mu.Unlock()
	if content == nil || r.Header.Get("If-None-Match") == etag {
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		h.mu.Lock()
		content, etag = h.content, fmt.Sprintf(`"%d"`, h.number)
		h.mu.Unlock()
	}
	h.mu.Lock()
	_, _ = fmt.Sscanf(etag, `"%d"`, &h.served)
	h.mu.Unlock()
	w.Header().Set("ETag", etag)
	w.Header().Set("Content-Type", "application/vnd.openpolicyagent.bundles")
	_, _ = w.Write(content)
}

// current says that what is there was asked for.
func (h *bundleHost) current() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.served == h.number
}

// policyBundle is a bundle whose policy p has this body.
func policyBundle(t *testing.T, revision, body string) []byte {
	t.Helper()
	return bundletest.Tarball(t, map[string]string{".manifest": `{"revision": "` + revision + `"}`, "p.rego": "package p\n" + body})
}

func remotePolicy(name, url string) *configpb.RegoPolicy {
	namespace, short, _ := strings.Cut(name, "/")
	return &configpb.RegoPolicy{Namespace: namespace, Name: short, Query: "data.p.allow", Bundle: &configpb.Bundle{Url: url, Refresh: durationpb.New(time.Second)}}
}

// A RegoPolicy in the mesh whose bundle is elsewhere: refused until it is there,
// followed from then on, and the last good one stays.
func TestRemoteBundleOfAPolicy(t *testing.T) {
	host := newBundleHost(t)
	state := t.TempDir()
	m := newMesh(t, func(c *Config) { c.State = state })
	policies := []*configpb.RegoPolicy{remotePolicy("default/remote", host.URL+"/p.tar.gz"), regoPolicy("default/local", "allow := true")}
	m.apply(t, policies...)
	decides := func(m *mesh, want bool) {
		t.Helper()
		proctest.Eventually(t, 30*time.Second, func() error {
			if got := allowed(m.check(t, "default/remote,default/local")); got != want {
				return fmt.Errorf("allowed %v: %s", got, m.log)
			}
			return nil
		})
	}
	first := m.check(t, "default/remote")
	if allowed(first) || !strings.Contains(first.GetDeniedResponse().GetBody(), "has not been loaded yet") {
		t.Errorf("before the bundle is there: %v", first)
	}
	if !allowed(m.check(t, "default/local")) {
		t.Error("another policy waits for the bundle")
	}
	before := m.policies.current.Load().revision
	host.set(policyBundle(t, "1", "allow := true"))
	decides(m, true)
	if m.policies.current.Load().revision == before {
		t.Error("the revision is that of before")
	}
	host.set(policyBundle(t, "2", "allow := false"))
	decides(m, false)
	host.set(policyBundle(t, "3", "allow := true"))
	decides(m, true)
	for what, bad := range map[string][]byte{
		"no rule of the query": policyBundle(t, "4", "deny := true"),
		"the network":          policyBundle(t, "4", `allow if http.send({"method": "GET", "url": "http://a.example"})`),
		"no Rego":              policyBundle(t, "4", "allow if"),
	} {
		errors := sample(t, m.reg, "writ_authz_bundle_loads_total", "default/remote", resultError)
		host.set(bad)
		proctest.Eventually(t, 30*time.Second, func() error {
			if sample(t, m.reg, "writ_authz_bundle_loads_total", "default/remote", resultError) == errors {
				return fmt.Errorf("%s: no error yet", what)
			}
			return nil
		})
		if !allowed(m.check(t, "default/remote")) {
			t.Errorf("%s: the last good bundle does not decide", what)
		}
		if told := problems(t, state); len(told) != 1 || told[0].Policy != "default/remote" || told[0].Reason == "" || told[0].Since.IsZero() {
			t.Errorf("%s: told %+v", what, told)
		}
		host.set(policyBundle(t, "5"+what, "allow := true"))
		proctest.Eventually(t, 30*time.Second, func() error {
			if sample(t, m.reg, "writ_authz_bundle_failing", "default/remote") != 0 {
				return fmt.Errorf("%s: still failing", what)
			}
			return nil
		})
	}

	if told := problems(t, state); len(told) != 0 {
		t.Errorf("told %+v", told)
	}

	// The policy that changes has what it had until its new bundle comes.
	other := newBundleHost(t)
	policies[0] = remotePolicy("default/remote", other.URL+"/q.tar.gz")
	m.apply(t, policies...)
	if !allowed(m.check(t, "default/remote")) {
		t.Error("a new URL threw the last good bundle away")
	}
	other.set(policyBundle(t, "6", "allow := false"))
	decides(m, false)

	// After a restart while the server is away the bundle that was kept decides.
	other.set(policyBundle(t, "7", "allow := true"))
	decides(m, true)
	proctest.Eventually(t, 30*time.Second, func() error {
		if n := series(t, m.reg, "writ_authz_bundle_activated_timestamp_seconds"); n != 1 {
			return fmt.Errorf("%d bundles are reported", n)
		}
		return nil
	})
	other.CloseClientConnections()
	other.Close()
	again := newMesh(t, func(c *Config) { c.State = state })
	if !again.policies.restore(context.Background()) {
		t.Fatal("nothing was kept")
	}
	decides(again, true)
	again.apply(t, policies[1])
	if len(again.policies.remotes.running) != 0 {
		t.Error("a bundle that no policy names is still followed")
	}
}

// Nothing holds what a bundle was compiled to, hundreds of megabytes at times, once another
// has taken its place: neither the decision log, which knows what policies read, nor what is
// kept of their decisions.
func TestReplacedBundlesAreLetGoOf(t *testing.T) {
	host := newBundleHost(t)
	m := newMesh(t)
	m.apply(t, remotePolicy("default/remote", host.URL+"/p.tar.gz"))
	policy := func(want bool) string {
		return fmt.Sprintf(`allow if { input.attributes.request.http.headers["x-user"] == "u"; input.jwt.claims.sub != "" } else := %v`, want)
	}
	decides := func(want bool) {
		t.Helper()
		proctest.Eventually(t, 30*time.Second, func() error {
			if got := allowed(m.check(t, "default/remote")); got != want {
				return fmt.Errorf("allowed %v: %s", got, m.log)
			}
			return nil
		})
	}
	host.set(policyBundle(t, "1", policy(true)))
	decides(true)
	replaced := weak.Make(m.policies.current.Load().policies["default/remote"].program)
	host.set(policyBundle(t, "2", policy(false)))
	decides(false)
	proctest.Eventually(t, 30*time.Second, func() error {
		if runtime.GC(); replaced.Value() != nil {
			return errors.New("the program is held")
		}
		return nil
	})
}

// problems is what `writ status` is told.
func problems(t *testing.T, state string) []bundlestatus.Problem {
	t.Helper()
	list, err := bundlestatus.Read(state)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A bundle that has to be signed is believed by its signature alone.
func TestRemoteBundleIsSigned(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	plain := policyBundle(t, "1", "allow := true")
	b, err := opabundle.NewReader(bytes.NewReader(plain)).WithLazyLoadingMode(false).Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.GenerateSignature(opabundle.NewSigningConfig(string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})), "ES256", ""), "any", true); err != nil {
		t.Fatal(err)
	}
	var signed bytes.Buffer
	if err := opabundle.Write(&signed, b); err != nil {
		t.Fatal(err)
	}

	host := newBundleHost(t)
	m := newMesh(t)
	p := remotePolicy("default/remote", host.URL+"/p.tar.gz")
	p.Bundle.Signing = &configpb.BundleSigning{Algorithm: "ES256", Key: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))}
	m.apply(t, p)
	host.set(plain)
	proctest.Eventually(t, 30*time.Second, func() error {
		if sample(t, m.reg, "writ_authz_bundle_loads_total", "default/remote", resultError) == 0 {
			return fmt.Errorf("a bundle without a signature is not refused yet")
		}
		return nil
	})
	if allowed(m.check(t, "default/remote")) {
		t.Fatal("a bundle without a signature decides")
	}
	host.set(signed.Bytes())
	proctest.Eventually(t, 30*time.Second, func() error {
		if !allowed(m.check(t, "default/remote")) {
			return fmt.Errorf("not yet: %s", m.log)
		}
		return nil
	})
}

// Two programs never meet in one decision, also while bundles come and others
// change: each set of policies is whole.
func TestRemoteBundlesUnderLoad(t *testing.T) {
	host := newBundleHost(t)
	host.set(policyBundle(t, "0", `allow := {"allowed": true, "headers": {"x-a": "0", "x-b": "0"}}`))
	m := newMesh(t)
	m.apply(t, remotePolicy("default/remote", host.URL+"/p.tar.gz"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got := make(map[string]string)
				for _, h := range m.check(t, "default/remote").GetOkResponse().GetHeaders() {
					got[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
				}
				if len(got) > 0 && (len(got) != 2 || got["x-a"] != got["x-b"]) {
					t.Errorf("a decision of two revisions: %v", maps.Clone(got))
					return
				}
			}
		})
	}
	for i := 1; i <= 5; i++ {
		host.set(policyBundle(t, fmt.Sprint(i), fmt.Sprintf(`allow := {"allowed": true, "headers": {"x-a": "%d", "x-b": "%d"}}`, i, i)))
		proctest.Eventually(t, 30*time.Second, func() error {
			for _, h := range m.check(t, "default/remote").GetOkResponse().GetHeaders() {
				if h.GetHeader().GetValue() == fmt.Sprint(i) {
					return nil
				}
			}
			return fmt.Errorf("revision %d is not in force yet", i)
		})
	}
	close(stop)
	wg.Wait()
}
