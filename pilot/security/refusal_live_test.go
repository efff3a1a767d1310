package security

import (
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/refusal"
)

// decisionID is the id of a refusal of regoAuthz.
const decisionID = "00000000-0000-4000-8000-000000000000"

// refusedByRego is what authz answers for a policy that says no and nothing else, and
// for a request that it cannot take apart.
func refusedByRego(r *authv3.CheckRequest, policy string, malformed bool) *authv3.DeniedHttpResponse {
	status, code, public := typev3.StatusCode_Forbidden, codes.PermissionDenied, ""
	if malformed {
		status, code, public = typev3.StatusCode_BadRequest, codes.Internal, refusal.Malformed
	}
	set := func(name, value string) *corev3.HeaderValueOption {
		return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}
	}
	h := r.GetAttributes().GetRequest().GetHttp().GetHeaders()
	out := &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: status}, Headers: []*corev3.HeaderValueOption{set(DeniedByHeader, "RegoPolicy "+policy)}}
	form := refusal.Sentence
	if refusal.IsGRPC(h["content-type"]) {
		out.Headers = append(out.Headers, set(refusal.DetailsHeader, refusal.Details(code, refusal.Body(refusal.Sentence, int(status), public, ""), decisionID)))
	} else {
		form = refusal.Preferred(h["accept"])
		out.Headers = append(out.Headers, set("content-type", form))
	}
	out.Body = refusal.Body(form, int(status), public, decisionID)
	return out
}

// TestRegoRefusalsAlike: the client does not see whether Envoy or authz has refused.
func TestRegoRefusalsAlike(t *testing.T) {
	const module = "package p\ndefault allow := false\nallow if input.attributes.request.http.method == \"PUT\""
	const clock = "\nallow if time.now_ns() < 0"
	eachEnvoy(t, func(t *testing.T, bin string) {
		authz := &regoAuthz{programs: map[string]*rego.Program{}}
		address, _ := authz.serve(t)
		build := func(text string) inbound {
			m, p := newMesh(t, ""), regoOf("w", text)
			m.Deciders.Authz = address
			m.RegoPolicies = append(m.RegoPolicies, p)
			if strings.Contains(text, clock) {
				p.Form = nil
				authz.add(t, p)
			}
			return inbound{http: compileHTTP(t, m, workload()), direct: true}
		}
		p := start(t, bin, map[string]inbound{"envoy": build(module), "authz": build(module + clock)})
		ids := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`)
		ask := func(at string, r request) answer {
			got := p.do(at, r)
			// What differs for each answer, and the details, which have an id in base64.
			for _, name := range []string{"Date", "Content-Length", http.CanonicalHeaderKey(refusal.DetailsHeader)} {
				if len(got.header[name]) > 0 {
					got.header[name] = []string{"some"}
				}
			}
			got.body = ids.ReplaceAllString(got.body, "ID")
			return got
		}
		compare := func(r request) answer {
			t.Helper()
			before := authz.asked.Load()
			here := ask("envoy", r)
			if authz.asked.Load() != before {
				t.Errorf("%+v: authz was asked", r)
			}
			there := ask("authz", r)
			if here.status != there.status || here.body != there.body || here.deniedBy != "RegoPolicy default/w" || !maps.EqualFunc(here.header, there.header, func(a, b []string) bool { return strings.Join(a, ",") == strings.Join(b, ",") }) {
				t.Errorf("%+v:\n%d %q %v\n%d %q %v", r, here.status, here.body, here.header, there.status, there.body, there.header)
			}
			return here
		}
		for _, accept := range []string{
			"", "*/*", "application/json", "text/html", "text/plain", "image/png", "text/html;q=0.5, application/json", "text/html, application/json", "application/json, text/plain, */*", "text/html;q=0", "text/html;q=0.1",
			"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", "text/plain;q=0.2, application/problem+json;q=0.1", "TEXT/HTML", "text/htmlx", "a'b\"c",
		} {
			r := request{header: map[string]string{"Accept": accept}}
			if accept == "" {
				r.header = nil
			}
			got := compare(r)
			if want := refusal.Body(refusal.Preferred(accept), 403, "", "ID"); got.body != want || got.header.Get("Content-Type") != refusal.Preferred(accept) {
				t.Errorf("accept %q: %s %q, want %q", accept, got.header.Get("Content-Type"), got.body, want)
			}
		}
		compare(request{method: http.MethodHead})
		for _, accept := range []string{"*/*", "application/json", "text/html", "text/plain"} {
			for _, path := range []string{"/a?b=%zz", "/a?b=%", "/a?b;c"} {
				got := compare(request{path: path, method: "PUT", header: map[string]string{"Accept": accept}})
				if want := refusal.Body(refusal.Preferred(accept), 400, refusal.Malformed, "ID"); got.status != 400 || got.body != want {
					t.Errorf("%s, accept %q: %d %q, want %q", path, accept, got.status, got.body, want)
				}
			}
		}
		if got := compare(request{path: "/a?b=%", method: "POST", header: map[string]string{"Content-Type": "application/grpc", "Te": "trailers"}}); got.header.Get("Grpc-Status") != "13" || got.header.Get("Grpc-Message") != "Bad Request: "+refusal.Malformed {
			t.Errorf("malformed, gRPC: %d %v", got.status, got.header)
		}
		for _, kind := range []string{"application/grpc", "application/grpc+proto"} {
			got := compare(request{method: "POST", header: map[string]string{"Content-Type": kind, "Te": "trailers"}})
			if got.status != 200 || got.header.Get("Grpc-Status") != "7" || got.header.Get("Grpc-Message") != "Forbidden" || got.header.Get(refusal.DetailsHeader) == "" {
				t.Errorf("%s: %d %v", kind, got.status, got.header)
			}
		}
		// The caller's own id is in the body if it is one, and never as anything else.
		const id = "6a4affea-156c-4452-adda-b24ca26a65b1"
		for sent, want := range map[string]string{id: "urn:uuid:" + id, `","evil":"`: "urn:uuid:-", "": "urn:uuid:-"} {
			got := p.do("envoy", request{header: map[string]string{"X-Request-Id": sent}})
			var problem struct{ Instance string }
			if err := json.Unmarshal([]byte(got.body), &problem); err != nil || sent != "" && problem.Instance != want {
				t.Errorf("x-request-id %q: %q, %v", sent, got.body, err)
			}
		}
	})
}

// TestMalformedLive: what is said of a request that is malformed.
func TestMalformedLive(t *testing.T) {
	t.Parallel()
	eachEnvoy(t, func(t *testing.T, bin string) {
		p := start(t, bin, map[string]inbound{"in": {http: compileHTTP(t, newMesh(t, ""), workload()), direct: true}})
		for rule, r := range map[string]request{
			"host": {host: "a,b"}, "path": {path: "/a/..%3b/b"}, "authorization": {header: map[string]string{"Authorization": "Bearer a, Bearer b"}},
		} {
			got := p.do("in", r)
			var problem struct{ Status int }
			if err := json.Unmarshal([]byte(got.body), &problem); err != nil || got.status != 400 || problem.Status != 400 || got.deniedBy != "MalformedRequest "+rule {
				t.Errorf("%s: %d %q %q, %v", rule, got.status, got.deniedBy, got.body, err)
			}
			r.header = map[string]string{"Authorization": "Bearer a, Bearer b", "Content-Type": "application/grpc"}
			if got := p.do("in", r); got.header.Get("Grpc-Status") != "13" || got.header.Get("Grpc-Message") != "Bad Request" {
				t.Errorf("%s, gRPC: %d %v", rule, got.status, got.header)
			}
		}
		for _, r := range []request{
			{host: "[::1]:80"},
			{host: "outbound|80||a_b.c"},
			{path: "/..a;b/a;..?x=/..;/"},
			{path: "/v1;x=..;"},
			{header: map[string]string{"Authorization": `Digest username="a", realm="b"`}},
			{header: map[string]string{"Authorization": "Bearer a"}},
		} {
			if got := p.do("in", r); got.status != 200 {
				t.Errorf("%+v: %d %q", r, got.status, got.deniedBy)
			}
		}
	})
}
