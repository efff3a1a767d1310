package cli

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// TestPrintKeySets has the example of docs/authorization.md first.
func TestPrintKeySets(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(d)) }
	var out strings.Builder
	printKeySets(&out, []*pilotpb.KeySetStatus{
		{Issuers: []string{"https://issuer.example"}, Uri: "https://issuer.example/jwks", Keys: 2, FetchedAt: at(-2 * time.Minute), ChangedAt: at(-49 * time.Hour), NextTryAt: at(200 * time.Second)},
		{
			Issuers: []string{"https://b", "https://c"}, Uri: "https://b/jwks", Entry: "default/b", Keys: 1, FetchedAt: at(-time.Hour), ChangedAt: at(-time.Hour),
			Error: "the server answers with status 503", FailingSince: at(-50 * time.Minute), NextTryAt: at(12 * time.Second),
		},
		{Issuers: []string{"https://d"}, Uri: "https://d/jwks", Error: "nobody is there", FailingSince: at(-3 * time.Second), NextTryAt: at(-time.Second)},
	}, now)
	const want = `
TOKEN ISSUERS (whose keys pilot fetches)
  https://issuer.example: 2 keys from https://issuer.example/jwks; seen 2m ago; the same for 49h0m; next look in 3m
  https://b, https://c: 1 key from https://b/jwks (where ServiceEntry default/b says); seen 1h0m ago; the same for 1h0m; cannot be fetched for 50m: the server answers with status 503; next try in 12s
  https://d: no keys yet from https://d/jwks; cannot be fetched for 3s: nobody is there; next try in 0s
`
	if out.String() != want {
		t.Errorf("printed:\n%s\nwant:\n%s", out.String(), want)
	}
	page, err := os.ReadFile("../../../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	if example := strings.Join(strings.Split(want, "\n")[1:3], "\n"); !strings.Contains(string(page), example) {
		t.Errorf("the page has another example than\n%s", example)
	}
}

// noneRevoked is a pilot by which no token is revoked.
type noneRevoked struct {
	pilotpb.UnimplementedTokenRevocationsServer
}

func (noneRevoked) CheckToken(context.Context, *pilotpb.CheckTokenRequest) (*pilotpb.CheckTokenResponse, error) {
	return &pilotpb.CheckTokenResponse{}, nil
}

// TestExplainByFetchedKeys: a mesh that runs tells whether a token is good whose keys are
// behind a URL, files alone do not.
func TestExplainByFetchedKeys(t *testing.T) {
	askingDir(t)
	edit(t, "examples/bookinfo/policies/tokens.yaml", func(text string) string {
		at := strings.Index(text, "    jwks: |")
		end := at + strings.Index(text[at:], "---")
		return text[:at] + "    jwksUri: https://issuer.bookinfo.example/jwks\n" + text[end:]
	})
	files := map[string][]byte{
		"/instances": []byte("apiVersion: local.writ.mesh/v1alpha1\nkind: WorkloadInstance\nmetadata: {name: productpage-1, namespace: default, labels: {app: productpage}}\n" +
			"spec: {serviceAccount: p, address: 127.0.1.1, ports: [{name: http, port: 9080}]}\n"),
	}
	var err error
	if files["tokens.yaml"], err = os.ReadFile("examples/bookinfo/policies/tokens.yaml"); err != nil {
		t.Fatal(err)
	}
	const key = `{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"bookinfo-1","x":"-P_o15lSaOzZb9LKCINxXUH6qR7Uh7ok-DCCts2uLPo","y":"EDv4qdA3yKw3PtQFLkzFfUacO3rC37d1hYNwVYZPe1M"}]}`
	besides := &pilotpb.GetConfigurationResponse{}
	socket := adminServer(t, func(s *grpc.Server) {
		pilotpb.RegisterConfigurationServer(s, inForce{files: files, besides: besides})
		pilotpb.RegisterTokenRevocationsServer(s, noneRevoked{})
	})
	for _, tc := range []struct {
		keys, want string
		code       int
	}{
		{"", "whether the token is valid cannot be told here: its keys are at https://issuer.bookinfo.example/jwks", 2},
		{key, "allowed: GET /api/x", 0},
		{strings.Replace(key, "bookinfo-1", "another", 1), "refused: GET /api/x", 1},
	} {
		if besides.KeySets = nil; tc.keys != "" {
			besides.KeySets = map[string]string{"https://issuer.bookinfo.example/jwks": tc.keys}
		}
		var out bytes.Buffer
		args := []string{"explain", "--from", "outside", "--to", "productpage:9080", "--path", "/api/x", "--jwt", "examples/bookinfo/tokens/alice.jwt", "--admin", socket}
		if code := Main(args, &out, &out); code != tc.code || !strings.Contains(out.String(), tc.want) {
			t.Errorf("with the keys %q: exit code %d, want %d and %q in\n%s", tc.keys, code, tc.code, tc.want, &out)
		}
	}
}
