package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// routeCase is one VirtualService of a service of its own, named after the case,
// in front of the apps v1, v2 and v3 (subsets of these names).
type routeCase struct {
	name string
	// http is the list of rules; spec, if set, the whole specification but hosts.
	http, spec string
	reqs       []routeReq
}

type routeReq struct {
	from    string // client-1 if empty
	method  string
	path    string   // / if empty
	headers []string // "name: value"
	want    string   // name of the app that answers, or the status
	check   func(t *testing.T, a answer)
}

const toV1, toV2, toV3 = `route: [{destination: {host: SVC, subset: v1}}]`, `route: [{destination: {host: SVC, subset: v2}}]`, `route: [{destination: {host: SVC, subset: v3}}]`

func header(name, want string) func(*testing.T, answer) {
	return func(t *testing.T, a answer) {
		t.Helper()
		if got := strings.Join(a.header.Values(name), ","); got != want {
			t.Errorf("response header %s is %q, want %q", name, got, want)
		}
	}
}

func sawHeader(name, want string) func(*testing.T, answer) {
	return func(t *testing.T, a answer) {
		t.Helper()
		if got := strings.Join(a.saw(t).Headers.Values(name), ","); got != want {
			t.Errorf("the app saw header %s %q, want %q", name, got, want)
		}
	}
}

func sawPath(want string) func(*testing.T, answer) {
	return func(t *testing.T, a answer) {
		t.Helper()
		s := a.saw(t)
		got := s.Path
		if s.Query != "" {
			got += "?" + s.Query
		}
		if got != want {
			t.Errorf("the app saw path %q, want %q", got, want)
		}
	}
}

func sawHost(want string) func(*testing.T, answer) {
	return func(t *testing.T, a answer) {
		t.Helper()
		if got := a.saw(t).Host; got != want {
			t.Errorf("the app saw host %q, want %q", got, want)
		}
	}
}

func body(want string) func(*testing.T, answer) {
	return func(t *testing.T, a answer) {
		t.Helper()
		if a.body != want {
			t.Errorf("body %q, want %q", a.body, want)
		}
	}
}

func all(checks ...func(*testing.T, answer)) func(*testing.T, answer) {
	return func(t *testing.T, a answer) {
		t.Helper()
		for _, c := range checks {
			c(t, a)
		}
	}
}

// matchCases are the fields of HTTPMatchRequest.
func matchCases() []routeCase {
	return []routeCase{
		{
			name: "uri", http: `
			- match: [{uri: {exact: /exact}}]
			  ` + toV1 + `
			- match: [{uri: {prefix: /pre}}]
			  ` + toV2 + `
			- match: [{uri: {regex: "/re/[0-9]+"}}]
			  ` + toV3 + ``,
			reqs: []routeReq{
				{path: "/exact", want: "v1"},
				{path: "/exact?q=1", want: "v1"},
				{path: "/exact/", want: "404"},
				{path: "/Exact", want: "404"},
				{path: "/pre", want: "v2"},
				{path: "/prefixed/more", want: "v2"},
				{path: "/re/12", want: "v3"},
				{path: "/re/12?x=y", want: "v3"},
				{path: "/re/12a", want: "404"},
				{path: "/a/re/12", want: "404"},
				{path: "/", want: "404"},
			},
		},
		{
			name: "ignorecase", http: `
			- match: [{uri: {exact: /Exact}, ignoreUriCase: true}]
			  ` + toV1 + `
			- match: [{uri: {prefix: /pre}, ignoreUriCase: true}]
			  ` + toV2 + ``,
			reqs: []routeReq{{path: "/eXACT", want: "v1"}, {path: "/PREFIX", want: "v2"}, {path: "/other", want: "404"}},
		},
		{
			name: "method", http: `
			- match: [{method: {exact: GET}}]
			  ` + toV1 + `
			- match: [{method: {regex: "PUT|PATCH"}}]
			  ` + toV2 + ``,
			reqs: []routeReq{{want: "v1"}, {method: "PUT", want: "v2"}, {method: "PATCH", want: "v2"}, {method: "POST", want: "404"}},
		},
		{
			name: "scheme", http: `
			- match: [{scheme: {exact: https}}]
			  ` + toV2 + `
			- match: [{scheme: {exact: http}}]
			  ` + toV1 + ``,
			reqs: []routeReq{{want: "v1"}},
		},
		{
			name: "authority", http: `
			- match: [{authority: {exact: authority.default}}]
			  ` + toV1 + `
			- match: [{authority: {prefix: authority.default.svc}}]
			  ` + toV2 + `
			- match: [{authority: {regex: "authority"}}]
			  ` + toV3 + ``,
			reqs: []routeReq{
				{path: "http://authority.default/", want: "v1"},
				{path: "http://authority.default.svc/", want: "v2"},
				{path: "http://authority.default.svc.cluster.local/", want: "v2"},
				{path: "http://authority/", want: "v3"},
			},
		},
		{
			name: "headers", http: `
			- match: [{headers: {x-user: {exact: jason}}}]
			  ` + toV1 + `
			- match: [{headers: {x-user: {prefix: ja}}}]
			  ` + toV2 + `
			- match: [{headers: {x-user: {regex: ".*a.*"}}}]
			  ` + toV3 + `
			- match: [{headers: {x-there: {}}}]
			  ` + toV1 + `
			- match: [{headers: {cookie: {regex: "^(.*?;)?(user=jason)(;.*)?$"}}}]
			  ` + toV2 + ``,
			reqs: []routeReq{
				{headers: []string{"x-user: jason"}, want: "v1"},
				{headers: []string{"X-User: jason"}, want: "v1"},
				{headers: []string{"x-user: Jason"}, want: "v3"},
				{headers: []string{"x-user: jane"}, want: "v2"},
				{headers: []string{"x-user: maria"}, want: "v3"},
				{headers: []string{"x-user: tom"}, want: "404"},
				{headers: []string{"x-there: anything"}, want: "v1"},
				{headers: []string{"x-there: "}, want: "v1"},
				{headers: []string{"cookie: a=b;user=jason"}, want: "v2"},
				{headers: []string{"cookie: user=jasonx"}, want: "404"},
				{want: "404"},
			},
		},
		{
			name: "withoutheaders", http: `
			- match: [{withoutHeaders: {x-a: {exact: one}, x-b: {}}}]
			  ` + toV1 + `
			- match: [{headers: {x-b: {}}, withoutHeaders: {x-a: {prefix: o}}}]
			  ` + toV2 + ``,
			reqs: []routeReq{
				{want: "v1"},
				{headers: []string{"x-a: two"}, want: "v1"},
				{headers: []string{"x-a: one"}, want: "404"},
				{headers: []string{"x-b: any"}, want: "v2"},
				{headers: []string{"x-b: any", "x-a: open"}, want: "404"},
			},
		},
		{
			name: "query", http: `
			- match: [{queryParams: {user: {exact: jason}}}]
			  ` + toV1 + `
			- match: [{queryParams: {user: {prefix: m}}}]
			  ` + toV2 + `
			- match: [{queryParams: {id: {regex: "[0-9]+"}}}]
			  ` + toV3 + `
			- match: [{queryParams: {debug: {}}}]
			  ` + toV2 + `
			- match: [{queryParams: {empty: {exact: ""}}}]
			  ` + toV3 + ``,
			reqs: []routeReq{
				{path: "/?user=jason", want: "v1"},
				{path: "/?a=b&user=jason", want: "v1"},
				{path: "/?user=mary", want: "v2"},
				{path: "/?user=tom", want: "404"},
				{path: "/?id=12", want: "v3"},
				{path: "/?id=12a", want: "404"},
				{path: "/?debug=x", want: "v2"},
				{path: "/?debug", want: "v2"},
				{path: "/?empty=", want: "v3"},
				{want: "404"},
			},
		},
		{
			name: "port", http: `
			- match: [{port: 8080}]
			  ` + toV2 + `
			- match: [{port: 80}]
			  ` + toV1 + ``,
			reqs: []routeReq{{want: "v1"}, {path: "http://port:8080/", want: "v2"}},
		},
		{
			name: "source", http: `
			- match: [{sourceLabels: {app: client, tier: web}}]
			  ` + toV1 + `
			- match: [{sourceNamespace: other}]
			  ` + toV2 + `
			- ` + toV3 + ``,
			reqs: []routeReq{
				{from: "client-1", want: "v1"},
				{from: "stranger-1", path: "http://source.default/", want: "v2"},
				{from: "plain-1", want: "v3"},
			},
		},
		{
			name: "andor", http: `
			- match:
			  - {uri: {prefix: /wp}, headers: {x-a: {exact: "1"}}}
			  - {uri: {prefix: /consumer}}
			  ` + toV1 + `
			- ` + toV2 + ``,
			reqs: []routeReq{
				{path: "/wp", headers: []string{"x-a: 1"}, want: "v1"},
				{path: "/wp", want: "v2"},
				{headers: []string{"x-a: 1"}, want: "v2"},
				{path: "/consumer", want: "v1"},
			},
		},
		{
			name: "matchgateways", spec: `
			gateways: [mesh, front]
			http:
			- match: [{gateways: [front]}]
			  ` + toV1 + `
			- match: [{gateways: [mesh], sourceLabels: {app: nobody}}]
			  ` + toV2 + `
			- ` + toV3 + ``,
			reqs: []routeReq{{want: "v2"}},
		},
		{
			name: "gatewayonly", spec: `
			gateways: [front]
			http: [{directResponse: {status: 418}}]`,
			reqs: []routeReq{{check: func(t *testing.T, a answer) {
				if a.status != 200 {
					t.Errorf("rules of a gateway are none of the mesh's: %s", a)
				}
			}}},
		},
		{name: "norules", spec: `http: []`, reqs: nil},
	}
}

// actionCases are the fields of HTTPRoute.
func actionCases() []routeCase {
	slow := []string{"x-do: sleep=1s"}
	return []routeCase{
		{
			name: "timeout", http: `
			- match: [{uri: {prefix: /short}}]
			  timeout: 0.3s
			  ` + toV1 + `
			- ` + toV1 + ``,
			reqs: []routeReq{
				{path: "/short", want: "v1"},
				{path: "/short", headers: slow, want: "504", check: body("upstream request timeout")},
				{path: "/", headers: slow, want: "v1"},
			},
		},
		{
			name: "retry", http: `
			- match: [{uri: {prefix: /3x}}]
			  retries: {attempts: 3, retryOn: 5xx}
			  ` + toV1 + `
			- match: [{uri: {prefix: /code}}]
			  retries: {attempts: 2, retryOn: "503,reset"}
			  ` + toV1 + `
			- match: [{uri: {prefix: /never}}]
			  retries: {attempts: 0}
			  ` + toV1 + `
			- match: [{uri: {prefix: /pertry}}]
			  timeout: 5s
			  retries: {attempts: 2, perTryTimeout: 0.6s, retryOn: "5xx"}
			  ` + toV1 + `
			- ` + toV1 + ``,
			reqs: []routeReq{
				{path: "/3x", headers: []string{"x-do: fail=3", "x-id: retry-1"}, want: "v1", check: sawHeader("x-envoy-attempt-count", "4")},
				{path: "/3x", headers: []string{"x-do: fail=4", "x-id: retry-2"}, want: "503"},
				{path: "/code", headers: []string{"x-do: fail=2", "x-id: retry-3"}, want: "v1"},
				{path: "/code", headers: []string{"x-do: status=500", "x-id: retry-4"}, want: "500"},
				{path: "/never", headers: []string{"x-do: fail=1", "x-id: retry-5"}, want: "503"},
				{path: "/pertry", headers: []string{"x-do: sleep=3s", "x-id: retry-6"}, want: "504"},
				{path: "/", headers: []string{"x-do: fail=1", "x-id: retry-7"}, want: "503"},
			},
		},
		{
			name: "redirect", http: `
			- match: [{uri: {exact: /uri}}]
			  redirect: {uri: /v1/bookRatings, authority: newratings.default.svc.cluster.local}
			- match: [{uri: {prefix: /pre/}}]
			  redirect: {uri: /whole}
			- match: [{uri: {exact: /https}}]
			  redirect: {scheme: https}
			- match: [{uri: {exact: /port}}]
			  redirect: {port: 9999}
			- match: [{uri: {exact: /derive}}]
			  redirect: {authority: other.example, derivePort: FROM_REQUEST_PORT}
			- match: [{uri: {exact: /default}}]
			  redirect: {authority: other.example, derivePort: FROM_PROTOCOL_DEFAULT}
			- match: [{uri: {exact: /eighty}}]
			  redirect: {port: 80}
			- match: [{uri: {exact: /tls}}]
			  redirect: {scheme: https, port: 443}
			- match: [{uri: {exact: /protocol}}]
			  redirect: {uri: /x, derivePort: FROM_PROTOCOL_DEFAULT}
			- match: [{uri: {exact: /named}, headers: {method: {exact: POST}}}]
			  redirect: {uri: /ignored}
			- match: [{uri: {exact: /302}}]
			  redirect: {uri: /x, redirectCode: 302}
			- match: [{uri: {exact: /303}}]
			  redirect: {uri: /x, redirectCode: 303}
			- match: [{uri: {exact: /307}}]
			  redirect: {uri: /x, redirectCode: 307}
			- match: [{uri: {exact: /308}}]
			  redirect: {uri: /x, redirectCode: 308}
			- match: [{uri: {exact: /withheaders}}]
			  redirect: {uri: /x}
			  headers: {response: {set: {x-why: moved}}}`,
			reqs: []routeReq{
				{path: "/uri", want: "301", check: header("location", "http://newratings.default.svc.cluster.local/v1/bookRatings")},
				{path: "/pre/a/b?q=1", want: "301", check: header("location", "http://redirect/whole?q=1")},
				{path: "/https", want: "301", check: header("location", "https://redirect/https")},
				{path: "http://redirect:8080/https", want: "301", check: header("location", "https://redirect:8080/https")},
				{path: "/port", want: "301", check: header("location", "http://redirect:9999/port")},
				{path: "http://redirect:8080/derive", want: "301", check: header("location", "http://other.example:8080/derive")},
				{path: "http://redirect:8080/default", want: "301", check: header("location", "http://other.example/default")},
				{path: "/302", want: "302"},
				{path: "/eighty", want: "301", check: header("location", "http://redirect/eighty")},
				{path: "http://redirect:8080/eighty", want: "301", check: header("location", "http://redirect:80/eighty")},
				{path: "http://redirect:8080/tls", want: "301", check: header("location", "https://redirect:443/tls")},
				{path: "/tls", want: "301", check: header("location", "https://redirect/tls")},
				{path: "http://redirect:8080/protocol", want: "301", check: header("location", "http://redirect:80/x")},
				{path: "/protocol", want: "301", check: header("location", "http://redirect/x")},
				{path: "/named", want: "301", check: header("location", "http://redirect/ignored")},
				{path: "/303", want: "303"},
				{path: "/307", want: "307"},
				{path: "/308", want: "308"},
				{path: "/withheaders", want: "301", check: header("x-why", "moved")},
			},
		},
		{
			name: "direct", http: `
			- match: [{uri: {exact: /string}}]
			  directResponse: {status: 503, body: {string: "unknown error"}}
			- match: [{uri: {exact: /bytes}}]
			  directResponse: {status: 200, body: {bytes: "dW5rbm93biBlcnJvcg=="}}
			- match: [{uri: {exact: /json}}]
			  directResponse: {status: 418, body: {string: '{"a": 1}'}}
			  headers: {response: {set: {content-type: application/json}}}
			- directResponse: {status: 204}`,
			reqs: []routeReq{
				{path: "/string", want: "503", check: all(body("unknown error"), header("content-type", "text/plain"))},
				{path: "/bytes", want: "200", check: body("unknown error")},
				{path: "/json", want: "418", check: all(body(`{"a": 1}`), header("content-type", "application/json"))},
				{path: "/", want: "204"},
			},
		},
		{
			name: "rewrite", http: `
			- match: [{uri: {exact: /exact}}]
			  rewrite: {uri: /new}
			  ` + toV1 + `
			- match: [{uri: {prefix: /ratings}}]
			  rewrite: {uri: /v1/bookRatings}
			  ` + toV1 + `
			- match: [{uri: {prefix: /strip/}}]
			  rewrite: {uri: /}
			  ` + toV1 + `
			- match: [{uri: {prefix: /host}}]
			  rewrite: {authority: other.example}
			  ` + toV1 + `
			- match: [{uri: {prefix: /service/}}]
			  rewrite: {uriRegexRewrite: {match: "^/service/([^/]+)(/.*)$", rewrite: "\\2/instance/\\1"}}
			  ` + toV1 + `
			- match: [{uri: {regex: "/reg/.*"}}]
			  rewrite: {uri: /fixed}
			  ` + toV1 + `
			- rewrite: {uri: /base/}
			  ` + toV1 + ``,
			reqs: []routeReq{
				{path: "/exact?a=b", want: "v1", check: sawPath("/new?a=b")},
				{path: "/ratings/7?a=b", want: "v1", check: sawPath("/v1/bookRatings/7?a=b")},
				{path: "/strip/a/b", want: "v1", check: sawPath("/a/b")},
				{path: "/host/x", want: "v1", check: all(sawPath("/host/x"), sawHost("other.example"))},
				{path: "/service/foo/v1/api", want: "v1", check: sawPath("/v1/api/instance/foo")},
				{path: "/reg/a/b?q=1", want: "v1", check: sawPath("/fixed?q=1")},
				{path: "/anything", want: "v1", check: all(sawPath("/base/anything"), sawHost("rewrite"), sawHeader("x-envoy-original-path", "/anything"))},
			},
		},
		{
			name: "headerops", http: `
			- match: [{uri: {exact: /route}}]
			  headers:
			    request: {set: {x-set: new}, add: {x-add: more}, remove: [x-gone]}
			    response: {set: {x-app-header: changed}, add: {x-resp: added}, remove: [x-echo-not]}
			  ` + toV1 + `
			- match: [{uri: {exact: /both}}]
			  headers: {request: {set: {x-set: route}, add: {x-add: route}}}
			  route:
			  - destination: {host: SVC, subset: v1}
			    headers: {request: {set: {x-only: destination}, add: {x-add: destination}}, response: {remove: [x-app-header]}}
			- match: [{uri: {exact: /weighted}}]
			  route:
			  - {destination: {host: SVC, subset: v1}, weight: 0, headers: {request: {set: {x-set: one}}}}
			  - {destination: {host: SVC, subset: v2}, weight: 100, headers: {request: {set: {x-set: two}}, response: {set: {x-resp: two}}}}
			- match: [{uri: {exact: /hosted}}]
			  headers: {request: {set: {Host: hosted.example}}}
			  ` + toV1 + `
			- match: [{uri: {exact: /var}}]
			  headers: {request: {set: {x-peer: "%REQ(x-from)%-%PROTOCOL%"}}, response: {set: {x-percent: "100%%"}}}
			  ` + toV1 + ``,
			reqs: []routeReq{
				{path: "/route", headers: []string{"x-set: old", "x-add: first", "x-gone: there"}, want: "v1", check: all(
					sawHeader("x-set", "new"), sawHeader("x-add", "first,more"), sawHeader("x-gone", ""), header("x-app-header", "changed"), header("x-resp", "added"))},
				{path: "/both", want: "v1", check: all(sawHeader("x-set", "route"), sawHeader("x-only", "destination"), header("x-app-header", ""))},
				{path: "/weighted", want: "v2", check: all(sawHeader("x-set", "two"), header("x-resp", "two"))},
				{path: "/hosted", want: "v1", check: sawHost("hosted.example")},
				{path: "/var", headers: []string{"x-from: me"}, want: "v1", check: all(sawHeader("x-peer", "me-HTTP/1.1"), header("x-percent", "100%"))},
			},
		},
		{
			name: "fault", http: `
			- match: [{uri: {exact: /abort}}]
			  fault: {abort: {percentage: {value: 100}, httpStatus: 555}}
			  ` + toV1 + `
			- match: [{uri: {exact: /grpc}}]
			  fault: {abort: {percentage: {value: 100}, grpcStatus: UNAVAILABLE}}
			  ` + toV1 + `
			- match: [{uri: {exact: /none}}]
			  fault: {abort: {httpStatus: 500}}
			  ` + toV1 + `
			- match: [{uri: {exact: /zero}}]
			  fault: {abort: {percentage: {value: 0}, httpStatus: 500}}
			  ` + toV1 + `
			- match: [{uri: {exact: /delay}}]
			  fault: {delay: {percentage: {value: 100}, fixedDelay: 0.4s}}
			  ` + toV1 + `
			- match: [{uri: {exact: /percent}}]
			  fault: {delay: {percent: 100, fixedDelay: 400ms}}
			  ` + toV1 + `
			- match: [{uri: {exact: /both}}]
			  fault: {delay: {percentage: {value: 100}, fixedDelay: 0.4s}, abort: {percentage: {value: 100}, httpStatus: 400}}
			  ` + toV1 + `
			- ` + toV1 + ``,
			reqs: []routeReq{
				{path: "/abort", want: "555", check: body("fault filter abort")},
				{path: "/grpc", want: "200", headers: []string{"content-type: application/grpc"}, check: header("grpc-status", "14")},
				{path: "/none", want: "v1"},
				{path: "/zero", want: "v1"},
				{path: "/", want: "v1"},
			},
		},
		{
			name: "cors", http: `
			- corsPolicy:
			    allowOrigins: [{exact: "https://example.com"}, {regex: "https://.*[.]trusted[.]test"}]
			    allowMethods: [POST, GET]
			    allowCredentials: true
			    allowHeaders: [X-Foo-Bar]
			    exposeHeaders: [X-Exposed]
			    maxAge: 24h
			  ` + toV1 + ``,
			reqs: []routeReq{
				{method: "OPTIONS", headers: []string{"origin: https://example.com", "access-control-request-method: POST"}, want: "200", check: all(
					header("access-control-allow-origin", "https://example.com"), header("access-control-allow-methods", "POST,GET"),
					header("access-control-allow-headers", "X-Foo-Bar"), header("access-control-max-age", "86400"), header("access-control-allow-credentials", "true"))},
				{method: "OPTIONS", headers: []string{"origin: https://evil.test", "access-control-request-method: POST"}, want: "v1", check: header("access-control-allow-origin", "")},
				{headers: []string{"origin: https://a.trusted.test"}, want: "v1", check: all(header("access-control-allow-origin", "https://a.trusted.test"), header("access-control-expose-headers", "X-Exposed"))},
				{headers: []string{"origin: https://evil.test"}, want: "v1", check: header("access-control-allow-origin", "")},
			},
		},
		{
			name: "corsignore", http: `
			- corsPolicy: {allowOrigins: [{prefix: "https://example"}], allowMethods: [GET], unmatchedPreflights: IGNORE}
			  ` + toV1 + ``,
			reqs: []routeReq{
				{method: "OPTIONS", headers: []string{"origin: https://evil.test", "access-control-request-method: GET"}, want: "200", check: header("x-echo", "")},
				{method: "OPTIONS", headers: []string{"origin: https://example.org", "access-control-request-method: GET"}, want: "200", check: header("access-control-allow-origin", "https://example.org")},
			},
		},
		{
			name: "delegating", http: `
			- match: [{uri: {prefix: /productpage}}]
			  delegate: {name: productpage, namespace: nsa}
			- match: [{uri: {prefix: /own}}]
			  delegate: {name: own}
			- ` + toV3 + ``,
			reqs: []routeReq{
				{path: "/productpage/v1/", want: "v1"},
				{path: "/productpage", want: "v2"},
				{path: "/own/x", headers: []string{"x-h: 1"}, want: "v1"},
				{path: "/own/x", want: "v3"},
				{path: "/", want: "v3"},
			},
		},
		{
			name: "defaultport", http: `
			- match: [{uri: {prefix: /8000}}]
			  route: [{destination: {host: v3only, port: {number: 8000}}}]
			- match: [{uri: {prefix: /other}}]
			  route: [{destination: {host: v3only}}]
			- match: [{uri: {prefix: /fqdn}}]
			  route: [{destination: {host: SVC.default.svc.cluster.local, port: {number: 8080}, subset: v2}}]
			- ` + toV1 + ``,
			reqs: []routeReq{{path: "/8000", want: "v3"}, {path: "/other", want: "v3"}, {path: "/fqdn", want: "v2"}, {want: "v1"}},
		},
	}
}

func delegates() string {
	return object("VirtualService", "nsa", "productpage", strings.ReplaceAll(`
		http:
		- match: [{uri: {prefix: /productpage/v1/}}]
		  route: [{destination: {host: SVC.default.svc.cluster.local, subset: v1}}]
		- route: [{destination: {host: SVC.default.svc.cluster.local, subset: v2}}]`, "SVC", "delegating")) +
		object("VirtualService", "default", "own", `
		http:
		- match: [{headers: {x-h: {exact: "1"}}}]
		  route: [{destination: {host: delegating, subset: v1}}]`)
}

func (c routeCase) objects() string {
	spec := c.spec
	if spec == "" {
		spec = "http:\n" + indent(c.http)
	} else {
		spec = strings.TrimPrefix(indent(spec), "  ")
		spec = strings.ReplaceAll(spec, "\n  ", "\n")
	}
	spec = "hosts: [" + c.name + "]\n" + strings.ReplaceAll(spec, "SVC", c.name)
	if c.name == "norules" {
		spec = ""
	}
	out := service(c.name, "app: b", "{name: http, port: 80, targetPort: 8000}, {name: http-alt, port: 8080, targetPort: 8000}") +
		object("DestinationRule", "default", c.name, fmt.Sprintf(`
		host: %s
		subsets:
		- {name: v1, labels: {version: v1}}
		- {name: v2, labels: {version: v2}}
		- {name: v3, labels: {version: v3}}`, c.name))
	if spec != "" {
		out += object("VirtualService", "default", c.name, spec)
	}
	return out
}

// TestIstioRouting goes through the fields of VirtualService's HTTP rules.
func TestIstioRouting(t *testing.T) {
	t.Parallel()
	v1, v2, v3 := newApp(t, "v1"), newApp(t, "v2"), newApp(t, "v3")
	b := func(name string, a *app) string {
		return play("default", "b-"+name, map[string]string{"app": "b", "version": name}, a.port)
	}
	cases := append(matchCases(), actionCases()...)
	files := map[string]string{
		"workloads.yaml": b("v1", v1) + b("v2", v2) + b("v3", v3) +
			play("default", "client", map[string]string{"app": "client", "tier": "web"}, v1.port) +
			play("default", "plain", map[string]string{"app": "client"}, v1.port) +
			play("other", "stranger", map[string]string{"app": "stranger"}, v1.port),
		"common.yaml": delegates() + service("v3only", "app: b, version: v3", "{name: http, port: 8000}") +
			object("Gateway", "default", "front", fmt.Sprintf(`{selector: {istio: front}, servers: [{port: {number: %d, name: http, protocol: HTTP}, hosts: ["*"]}]}`, proctest.Port(t))),
	}
	for _, c := range cases {
		files[c.name+".yaml"] = c.objects()
	}
	m := up(t, writeFiles(t, files))
	if out, _ := m.writ("status", m.dir); strings.Contains(out, "error:") {
		t.Errorf("status: %s", out)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for i, r := range c.reqs {
				from := r.from
				if from == "" {
					from = "client-1"
				}
				target := r.path
				if !strings.HasPrefix(target, "http://") {
					target = "http://" + c.name + "/" + strings.TrimPrefix(r.path, "/")
				}
				got := m.from(from, request{method: r.method, url: target, headers: r.headers})
				if r.want != "" && got.outcome() != r.want && fmt.Sprint(got.status) != r.want {
					t.Errorf("request %d, %s %s %v: %s from %q, want %s", i, r.method, target, r.headers, got, got.outcome(), r.want)
					continue
				}
				if r.check != nil {
					r.check(t, got)
				}
			}
		})
	}
	t.Run("attempts", func(t *testing.T) {
		for id, want := range map[string]int{"retry-1": 4, "retry-2": 4, "retry-3": 3, "retry-4": 1, "retry-5": 1, "retry-6": 3, "retry-7": 1} {
			if got := len(v1.requestsWith(id)); got != want {
				t.Errorf("%s: %d attempts, want %d", id, got, want)
			}
		}
	})
	t.Run("delay", func(t *testing.T) {
		for path, want := range map[string]string{"/delay": "v1", "/percent": "v1", "/both": "400"} {
			begin := time.Now()
			got := m.get("client-1", "http://fault"+path)
			if took := time.Since(begin); got.outcome() != want || took < 380*time.Millisecond || took > 15*time.Second {
				t.Errorf("%s: %s after %s", path, got, took)
			}
		}
	})
}
