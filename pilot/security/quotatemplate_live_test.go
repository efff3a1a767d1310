package security

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// templates are those of the tests; the last ones are as large as meshdir takes them.
func templates() []model.Dimension {
	var out []model.Dimension
	for _, template := range []string{
		"/users/{id}/orders", "/users/{*}/orders", "/users/{id}/{**}", "/a.b(c)/{x}/{y_1}/end", "/{*}", "/{**}/z", "/it's/50%25/{**}", "/login", "/",
		"/{a}/{b}/{c}/{d}/kkkkkkkkkkk", "/{*}/{**}/" + strings.Repeat("k", 65),
	} {
		out = append(out, dim("request.path["+template+"]"))
	}
	return out
}

// hostilePaths are by whom would like to be counted as nobody, or as many.
func hostilePaths() []string {
	return []string{
		"/users/1/orders", "/users/2/orders", "/users/1/orders?x=/users/2/orders", "/users/1/orders/", "/users//orders", "/users/1//orders", "//users/1/orders",
		"/users/1;a=b/orders", "/users/;a/orders", "/users/1/orders;x", "/users/a%2Fb/orders", "/users/a%2fb/orders", "/users/a%40b/orders", "/users/a@b/orders",
		"/users/%31/orders", "/users/%C3%A9/orders", "/users/%c3%a9/orders", "/users/%C/orders", "/users/\xc3\xa9/orders", "/users/\xff/orders", "/users/a b/orders", "/users/a\"/orders",
		"/users/-/orders", "/users/./orders", "/users/../orders", "/users/1/x/y/z", "/users/1/", "/users/1", "/users", "/login", "/login/", "/", "/z", "//z", "/a/z", "/x/y/z",
		"/a.b(c)/1/2/end", "/aXb(c)/1/2/end", "/a.b(c)/1;/2;3/end", "/it's/50%25/x", "/it's/50%/x", "/1/2/3/4/kkkkkkkkkkk", "/a/" + strings.Repeat("k", 65), "/a/b/" + strings.Repeat("k", 65),
		"/users/" + strings.Repeat("1", model.MaxTemplatePath-len("/users//orders")) + "/orders",
		"/users/" + strings.Repeat("1", model.MaxTemplatePath+1-len("/users//orders")) + "/orders",
		"/users/" + strings.Repeat("1", 20_000) + "/orders",
	}
}

func templateValue(d model.Dimension, path string) string {
	path, _, _ = strings.Cut(path, "?")
	if value, ok := eval.TemplateValue(d.Template(), path); ok {
		return value
	}
	return "-"
}

// TestQuotaTemplateLive: a real Envoy counts paths by templates as the evaluator says,
// whatever it is asked for, at a sidecar and at a gateway.
func TestQuotaTemplateLive(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any number
	t.Logf("seed %d", seed)
	all := templates()
	eachEnvoy(t, func(t *testing.T, bin string) {
		server := &decider{}
		m := newMesh(t, "")
		m.Deciders.RateLimit = server.serve(t)
		m.QuotaPolicies = []*model.QuotaPolicy{quotaPolicy("q", true, per(all...))}
		gateway := workload()
		gateway.Type = model.GatewayProxy
		normal := func(manager *hcmv3.HttpConnectionManager, _ *routev3.Route) {
			manager.NormalizePath = wrapperspb.Bool(true)
		}
		p := start(t, bin, map[string]inbound{
			"sidecar": patient(t, inbound{http: compileHTTP(t, m, workload())}),
			"gateway": patient(t, inbound{http: compileHTTP(t, m, gateway)}),
			"normal":  patient(t, inbound{http: compileHTTP(t, m, workload()), alter: normal}),
		})
		asked := func(in, path string) []string {
			t.Helper()
			switch got := p.do(in, request{path: path, raw: true}); got.status {
			case 400:
				return nil // Envoy takes it for no path at all
			case 200:
				return server.lastDescriptors()[0][2:]
			default:
				t.Fatalf("%s: %d", path, got.status)
				return nil
			}
		}
		paths := hostilePaths()
		g := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test
		for range 150 {
			parts := []string{"users", "orders", "a.b(c)", "end", "1", "2;x", "", "%2F", "%C3%A9", "a=b", "z", "\"", "k;"}
			path := ""
			for range 1 + g.IntN(5) {
				path += "/" + parts[g.IntN(len(parts))]
			}
			paths = append(paths, path)
		}
		refused, fit := 0, make([]int, len(all))
		for i, path := range paths {
			if strings.HasPrefix(path, "//") { // the client would take it for a host
				continue
			}
			var want []string
			for k, d := range all {
				value := templateValue(d, path)
				if want = append(want, d.Text+"="+value); value != "-" {
					fit[k]++
				}
			}
			switch got := asked([]string{"sidecar", "gateway"}[i%2], path); {
			case got == nil:
				refused++
			case !slices.Equal(got, want):
				t.Errorf("%.100q:\n got %q\nwant %q", path, got, want)
			}
		}
		if refused > 10 || slices.Contains(fit, 0) {
			t.Errorf("%d of %d paths were refused by Envoy, %v fit", refused, len(paths), fit)
		}
		for path, want := range map[string]string{
			"/users/1/orders?q=2": "1", "/users/%31/orders": "1", "/users/x/../1/orders": "1", "/users/1;a=b/orders": "1", "/users/a%2Fb/orders": "-", "/users/%C3%A9/orders": "%C3%A9",
		} {
			if got := asked("normal", path); got == nil || got[0] != all[0].Text+"="+want {
				t.Errorf("normalized %q: %q, want %s", path, got, want)
			}
		}
	})
}

// TestQuotaKeptLive: what ratelimit is told of a request that is over is of the same
// counter as what it was asked, though the route has changed the path, a header and the
// host.
func TestQuotaKeptLive(t *testing.T) {
	t.Parallel()
	dims := []model.Dimension{dim("request.path[/users/{id}/orders]"), dim("request.path"), dim("request.headers[who]"), dim("destination.service")}
	changes := func(_ *hcmv3.HttpConnectionManager, r *routev3.Route) {
		r.GetRoute().PrefixRewrite = "/other"
		r.GetRoute().HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: "other"}
		r.RequestHeadersToRemove = []string{"who"}
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		server := &decider{}
		m := newMesh(t, "")
		m.Deciders.RateLimit = server.serve(t)
		m.QuotaPolicies = []*model.QuotaPolicy{quotaPolicy("q", false, model.QuotaLimit{Requests: 1, Every: time.Minute, Algorithm: configpb.QuotaConcurrency, Per: dims})}
		gateway := workload()
		gateway.Type = model.GatewayProxy
		p := start(t, bin, map[string]inbound{"in": patient(t, inbound{http: compileHTTP(t, m, gateway), alter: changes})})
		p.do("in", request{path: "/users/7/orders", host: "shop.example", header: map[string]string{"who": "me"}})
		proctest.Eventually(t, 10*time.Second, func() error {
			asked, over := server.told()
			const want = "request.path[/users/{id}/orders]=7 request.path=/users/7/orders request.headers[who]=me destination.service=shop.example"
			if len(over) == 0 {
				return errors.New("heard nothing of the end")
			}
			if !slices.Equal(asked, []string{"writ.hold=name0 " + want}) || !slices.Equal(over, []string{"- writ.hold=name0 writ.done=1 " + want}) {
				t.Fatalf("asked %q, told %q", asked, over)
			}
			return nil
		})
	})
}

// TestQuotaTemplateInProxyLive: what a proxy counts by itself it counts by templates too:
// while ratelimit is away, and where it keeps the limit.
func TestQuotaTemplateInProxyLive(t *testing.T) {
	t.Parallel()
	eachEnvoy(t, func(t *testing.T, bin string) {
		build := func(address string, local bool, limit model.QuotaLimit) inbound {
			m := newMesh(t, "")
			pol := quotaPolicy("q", false, limit)
			pol.FailLocal = local
			m.Deciders.RateLimit, m.QuotaPolicies = address, []*model.QuotaPolicy{pol}
			return inbound{http: compileHTTP(t, m, workload())}
		}
		server := &assigner{}
		assigned := per(dim("request.path[/a=b/{*}]"))
		assigned.Mode = configpb.QuotaAssigned
		named := model.QuotaLimit{Requests: 1, Every: time.Hour, Per: []model.Dimension{dim("request.path[/users/{id}/orders]")}}
		away := start(t, bin, map[string]inbound{"in": build("unix://"+filepath.Join(t.TempDir(), "gone"), true, named)})
		keeps := start(t, bin, map[string]inbound{"in": build(server.serve(t), false, assigned)})
		for i, c := range []struct {
			path string
			want int
		}{
			{"/users/1/orders", 200},
			{"/users/2/orders", 200},
			{"/users/1/orders?x", 429},
			{"/users/1;x/orders", 429},
			{"/users/3%2F/orders", 200},
			{"/users/4%2F/orders", 429},
			{"/", 429},
			{"/users/3/orders", 200},
		} {
			if got := away.do("in", request{path: c.path, raw: true}); got.status != c.want {
				t.Errorf("request %d, %s: %d, want %d", i, c.path, got.status, c.want)
			}
		}
		for path, value := range map[string]string{"/a=b/c": "/a%3db/{*}", "/a=b/d": "/a%3db/{*}", "/a=b/d/e": "-"} {
			proctest.Eventually(t, 20*time.Second, func() error {
				keeps.do("in", request{path: path, raw: true})
				if want := "default/q/0?request.path[/a%3db/{*}]=" + value; !slices.Contains(server.heard(), want) {
					return fmt.Errorf("%s: %q has no %s", path, server.heard(), want)
				}
				return nil
			})
		}
		if heard := server.heard(); len(heard) != 2 {
			t.Errorf("heard of %q", heard)
		}
	})
}
