package pilot

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/revision"
)

// TestRevokedOnConnectionsThatDrain: connections that are open when their listener is
// edited, and drain for longer than the test takes, meet the policies of before and what
// is revoked now.
func TestRevokedOnConnectionsThatDrain(t *testing.T) {
	t.Parallel()
	key := newTokenKey(t, "k")
	for i, bin := range envoytest.All(t) {
		for j, api := range []string{"DELTA_GRPC", "GRPC"} {
			t.Run(filepath.Base(filepath.Dir(filepath.Dir(bin)))+" "+api, func(t *testing.T) {
				t.Parallel()
				revokedWhileDraining(t, bin, api, fmt.Sprintf("127.9.81.%d", 2*i+j+1), key)
			})
		}
	}
}

func revokedWhileDraining(t *testing.T, bin, api, address string, key tokenKey) {
	root := pkitest.NewRoot(t, "cluster.local")
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "here") }))
	t.Cleanup(app.Close)
	_, port, _ := net.SplitHostPort(app.Listener.Addr().String())
	r := start(t, map[string]string{
		"mesh.yaml": "pathNormalization: {normalization: BASE}\n",
		"one.yaml": fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: one, namespace: default}
spec:
  hosts: [one.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: %s, name: http, protocol: HTTP}]
  endpoints: [{address: %s}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: default}
spec: {jwtRules: [{issuer: a, jwks: '%s'}]}
`, port, address, key.jwks(t)),
	})
	line := newDelayed(t, r.addr, root)
	runEnvoy(t, bin, line.addr, "sidecar~"+address+"~one.default~default.svc.cluster.local", "NONE", api, "--drain-time-s", "600")
	url := fmt.Sprintf("https://%s:%s/", address, port)
	dials := new(atomic.Int64)
	open := func(account, token string) caller {
		c := newCaller(t, url, token, identified(t, root, account), false)
		c.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) { //nolint:forcetypeassert // newCaller makes it
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if err == nil {
				dials.Add(1)
			}
			return conn, err
		}
		proctest.Until(t, bound, account+" is let in", func() bool { return c.ask() == http.StatusOK })
		return c
	}
	// While a listener drains an Envoy may close a connection after any answer: each of
	// them is asked once more.
	var xs, ys, joes []caller
	for range 16 {
		xs, ys, joes = append(xs, open("x", "")), append(ys, open("y", "")), append(joes, open("y", tokenOf(t, key)))
	}
	connections := dials.Load()
	live := func() {
		t.Helper()
		proctest.Until(t, bound, "it is live", func() bool { _, s := r.serving(); return s == revision.Live })
	}
	want := func(when string, of *[]caller, code int) {
		t.Helper()
		since := time.Now()
		live()
		proctest.Until(t, time.Second, when, func() bool {
			if len(*of) == 0 {
				t.Fatalf("%s: no more connections", when)
			}
			c := (*of)[0]
			*of = (*of)[1:]
			return c.ask() == code
		})
		t.Logf("%s: after %v", when, time.Since(since))
		if got := ys[0].ask(); got != http.StatusOK {
			t.Errorf("%s: the other caller gets %d", when, got)
		}
		ys = ys[1:]
	}

	// The listener is another one, and lets nobody in.
	r.write(t, "mesh.yaml", "pathNormalization: {normalization: MERGE_SLASHES}\n")
	r.write(t, "nobody.yaml", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: default}\nspec: {}\n")
	anew := newCaller(t, url, "", identified(t, root, "y"), true)
	proctest.Until(t, bound, "new connections are refused", func() bool { return anew.ask() == http.StatusForbidden })
	live()
	want("connections drain", &joes, http.StatusOK)

	r.setRevoked(revokedIdentity(7, "spiffe://cluster.local/ns/default/sa/x"))
	want("X is revoked", &xs, http.StatusForbidden)
	tell := func(tokens *model.RevokedTokens) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.takeUp(func() { r.tokens = tokens })
	}
	tell(&model.RevokedTokens{Subjects: map[string][]string{"a": {"joe"}}})
	want("a token is revoked", &joes, http.StatusForbidden)
	tell(nil)
	r.setRevoked(&model.Revoked{Sequence: 8})
	want("no token is revoked", &joes, http.StatusOK)
	want("nobody is revoked", &xs, http.StatusOK)
	if n := dials.Load(); n != connections {
		t.Errorf("%d connections more than were open before", n-connections)
	}
}
