package cli

import (
	"os"
	"strings"
	"testing"
	"time"

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
