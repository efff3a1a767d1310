package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// inForce is a pilot that has the candidate in force.
type inForce struct {
	pilotpb.UnimplementedConfigurationServer
	files map[string][]byte
	// besides is what it knows of revocations and lists.
	besides *pilotpb.GetConfigurationResponse
}

func (s inForce) GetConfiguration(context.Context, *pilotpb.GetConfigurationRequest) (*pilotpb.GetConfigurationResponse, error) {
	r := &pilotpb.GetConfigurationResponse{Revision: 7, Files: s.files, Authz: "unix:///authz", Ratelimit: "unix:///ratelimit"}
	if s.besides != nil {
		proto.Merge(r, s.besides)
	}
	return r, nil
}

// TestExplainLive asks about what pilot has in force, and not about files.
func TestExplainLive(t *testing.T) {
	files := map[string][]byte{
		"/instances":      []byte("apiVersion: local.writ.mesh/v1alpha1\nkind: WorkloadInstance\nmetadata: {name: a-1, namespace: default, labels: {app: a}}\nspec: {serviceAccount: a, address: 127.0.1.1, ports: [{name: http, port: 80}]}\n"),
		"p.yaml":          []byte("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/no]}}]}]}\n"),
		"lists/large.txt": make([]byte, 5<<20), // more than clients of gRPC take by themselves
	}
	socket := adminServer(t, func(s *grpc.Server) { pilotpb.RegisterConfigurationServer(s, inForce{files: files}) })
	for path, want := range map[string]int{"/no": 1, "/yes": 0} {
		var out bytes.Buffer
		args := []string{"explain", "--from", "outside", "--to", "a", "--path", path, "--admin", socket}
		if code := Main(args, &out, &out); code != want || want == 1 && !strings.Contains(out.String(), "by AuthorizationPolicy default/p rule 0 (p.yaml:4)") {
			t.Errorf("%v: exit code %d, want %d:\n%s", args, code, want, &out)
		}
	}
}

// revokedTokens is a pilot that knows of one token by its jti.
type revokedTokens struct {
	pilotpb.UnimplementedTokenRevocationsServer
}

func (revokedTokens) CheckToken(_ context.Context, r *pilotpb.CheckTokenRequest) (*pilotpb.CheckTokenResponse, error) {
	if r.GetIssuer() == "https://issuer.bookinfo.example" && r.GetSub() == "alice" && r.IssuedAt != nil {
		return &pilotpb.CheckTokenResponse{Reason: "sub"}, nil
	}
	return &pilotpb.CheckTokenResponse{}, nil
}

const listed = `
apiVersion: policy.writ.mesh/v1alpha1
kind: AccessList
metadata: {name: partners}
spec: {selector: {matchLabels: {app: details}}, action: DENY, match: request.path, from: {url: "https://lists.example/paths"}}
---
apiVersion: policy.writ.mesh/v1alpha1
kind: AccessList
metadata: {name: paths}
spec: {selector: {matchLabels: {app: reviews}}, action: DENY, match: request.path, from: {file: lists/paths.txt}}
`

// TestAskingWhatFilesDoNotHave: what is revoked, and what lists from elsewhere have, is
// told by a mesh that runs, and without one it is said that it is not known.
func TestAskingWhatFilesDoNotHave(t *testing.T) {
	askingDir(t)
	for name, text := range map[string]string{"lists.yaml": listed, "lists/paths.txt": "/secret\n"} {
		file := filepath.Join("examples/bookinfo", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string][]byte{}
	for _, name := range []string{"policies/mtls.yaml", "policies/who-may-call.yaml", "policies/tokens.yaml", "lists.yaml"} {
		data, err := os.ReadFile(filepath.Join("examples/bookinfo", name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = data
	}
	for i, app := range []string{"productpage", "details", "reviews"} {
		files["/instances"] = fmt.Appendf(files["/instances"], "---\napiVersion: local.writ.mesh/v1alpha1\nkind: WorkloadInstance\nmetadata: {name: %[1]s-1, namespace: default, labels: {app: %[1]s}}\n"+
			"spec: {serviceAccount: bookinfo-%[1]s, address: 127.0.1.%[2]d, ports: [{name: http, port: 9080}]}\n", app, i+1)
	}
	besides := &pilotpb.GetConfigurationResponse{
		RevokedIdentities:   []string{"spiffe://cluster.local/ns/default/sa/bookinfo-reviews"},
		RevokedCertificates: []*pilotpb.RevokedCertificate{{Serial: "0abc", SpiffeId: "spiffe://cluster.local/ns/default/sa/bookinfo-productpage"}},
		Lists:               map[string]*pilotpb.FetchedList{"default/partners": {Entries: []string{"/secret"}}},
	}
	socket := adminServer(t, func(s *grpc.Server) {
		pilotpb.RegisterConfigurationServer(s, inForce{files: files, besides: besides})
		pilotpb.RegisterTokenRevocationsServer(s, revokedTokens{})
	})
	gateway := "istio-system/istio-ingressgateway-service-account"
	for _, tc := range []struct {
		args string
		live bool
		code int
		want string
	}{
		{"explain --from default/bookinfo-productpage --to details:9080", true, 0, "of the caller 1 certificate is revoked (0abc)"},
		{"explain --from default/bookinfo-productpage --to details:9080 --path /secret", true, 1, "by AccessList default/partners rule 1"},
		{"explain --from default/bookinfo-productpage --to reviews:9080", true, 1, "the caller gets 503"},
		{"explain --from default/bookinfo-reviews --to details:9080", true, 1, "by Revocation spiffe://cluster.local/ns/default/sa/bookinfo-reviews"},
		{"explain --from " + gateway + " --to productpage:9080 --path /api/x --jwt examples/bookinfo/tokens/alice.jwt", true, 1, "by TokenRevocation sub"},
		{"explain --from " + gateway + " --to productpage:9080 --path /api/x --jwt examples/bookinfo/tokens/alice.jwt", false, 0, "whether the token is revoked: it is taken for good"},
		{"explain --from productpage --to reviews:9080", false, 0, "whether the certificate of cluster.local/ns/default/sa/bookinfo-productpage is revoked: it is taken for good"},
		{"explain --from productpage --to reviews:9080 --path /secret", false, 1, "by AccessList default/paths rule 1"},
		{"explain --from productpage --to details:9080", false, 1, "the entries of its source are not known here"},
		{"whocan --to details:9080 --path /x", true, 0, "1 certificate is revoked: whoever shows it is refused"},
		{"whocan --to details:9080 --path /secret", true, 1, "nobody"},
		{"whocan --to reviews:9080 --path /x", true, 1, "nobody"},
		{"whocan --to details:9080 --path /x", false, 1, "what the source of AccessList default/partners gives: it is taken as before it gave anything"},
		{"whocan --to reviews:9080 --path /x", false, 0, "what is revoked only a mesh that runs knows: ask with --live"},
	} {
		args := append(strings.Fields(tc.args), "examples/bookinfo")
		if tc.live {
			args = append(strings.Fields(tc.args), "--admin", socket)
		}
		var out bytes.Buffer
		if code := Main(args, &out, &out); code != tc.code || !strings.Contains(out.String(), tc.want) {
			t.Errorf("writ %s: exit code %d, want %d and %q in\n%s", strings.Join(args, " "), code, tc.code, tc.want, &out)
		}
		if tc.live && strings.Contains(out.String(), "NOT KNOWN WITHOUT") {
			t.Errorf("writ %s: a mesh that runs does not know:\n%s", tc.args, &out)
		}
	}
	// Whom the ALLOW policy names and who is revoked cannot call.
	var out bytes.Buffer
	besides.RevokedIdentities = append(besides.RevokedIdentities, "spiffe://cluster.local/ns/default/sa/bookinfo-productpage")
	if code := Main([]string{"whocan", "--to", "details:9080", "--path", "/x", "--admin", socket}, &out, &out); code != 1 {
		t.Errorf("revoked callers may: exit code %d\n%s", code, &out)
	}
}
