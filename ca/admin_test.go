package ca

import (
	"encoding/pem"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	istiopb "istio.io/api/security/v1alpha1"

	"github.com/writ-mesh/writ/internal/config"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func TestMintAnyIDOfTheTrustDomain(t *testing.T) {
	h := start(t, nil)
	for _, tc := range []struct {
		id, csr string
		want    codes.Code
	}{
		{reviewsID, "", codes.OK},
		{reviewsID, reviewsID, codes.OK},
		{"spiffe://example.org/any/thing", "", codes.OK},
		{reviewsID, ratingsID, codes.InvalidArgument},
		{"spiffe://" + foreignTD + "/a", "", codes.PermissionDenied},
		{"spiffe://example.org", "", codes.InvalidArgument},
		{"https://example.org/a", "", codes.InvalidArgument},
		{"", "", codes.InvalidArgument},
	} {
		t.Run(tc.id+" "+tc.csr, func(t *testing.T) {
			key, der := request(t, tc.csr)
			resp, err := h.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: tc.id, Csr: der})
			wantCode(t, err, tc.want)
			if err == nil && h.svid(resp, key).ID.String() != tc.id {
				t.Error("another identity came back")
			}
		})
	}
}

func TestListCertificates(t *testing.T) {
	h := start(t, func(c *Config) { c.WorkloadTTL = config.Duration(minTTL); c.Listen = "" })
	svids := []*x509svid.SVID{h.mint(reviewsID), h.mint(ratingsID), h.mint(reviewsID)}
	h.restart()
	all := h.ledger(&capb.ListCertificatesRequest{})
	if len(all) != len(svids) {
		t.Fatalf("got %d records, want %d", len(all), len(svids))
	}
	for i, r := range all {
		leaf := svids[i].Certificates[0]
		if r.GetSerial() != leafSerial(leaf.SerialNumber.Text(16)) || r.GetSpiffeId() != svids[i].ID.String() ||
			!r.GetNotAfter().AsTime().Equal(leaf.NotAfter) || !r.GetNotBefore().AsTime().Equal(leaf.NotBefore) ||
			!strings.HasPrefix(r.GetRequester(), "admin uid=") || time.Since(r.GetIssuedAt().AsTime()) > time.Minute {
			t.Errorf("record %d: %v", i, r)
		}
	}
	if got := h.ledger(&capb.ListCertificatesRequest{SpiffeId: reviewsID}); len(got) != 2 {
		t.Errorf("by identity: got %d records, want 2", len(got))
	}
	if got := h.ledger(&capb.ListCertificatesRequest{Live: true}); len(got) != 3 {
		t.Errorf("live: got %d records, want 3", len(got))
	}
}

// leafSerial has two digits for each byte.
func leafSerial(hex string) string {
	if len(hex)%2 == 1 {
		return "0" + hex
	}
	return hex
}

func TestTokensAreForNodesAndServices(t *testing.T) {
	h := start(t, nil)
	for _, tc := range []struct {
		id   string
		ttl  *durationpb.Duration
		want codes.Code
	}{
		{nodeID, nil, codes.OK},
		{pilotID, durationpb.New(time.Hour), codes.OK},
		{pilotID, durationpb.New(25 * time.Hour), codes.InvalidArgument},
		{pilotID, durationpb.New(-time.Hour), codes.InvalidArgument},
		{reviewsID, nil, codes.InvalidArgument},
		{"spiffe://example.org/writ/ca", nil, codes.InvalidArgument},
		{"spiffe://example.org/writ/node", nil, codes.InvalidArgument},
		{"spiffe://" + foreignTD + "/writ/node/n1", nil, codes.InvalidArgument},
		{"", nil, codes.InvalidArgument},
	} {
		t.Run(tc.id, func(t *testing.T) {
			resp, err := h.admin().CreateJoinToken(t.Context(), &capb.CreateJoinTokenRequest{SpiffeId: tc.id, Ttl: tc.ttl})
			wantCode(t, err, tc.want)
			if err != nil {
				return
			}
			want := 10 * time.Minute
			if tc.ttl != nil {
				want = tc.ttl.AsDuration()
			}
			if left := time.Until(resp.GetExpiresAt().AsTime()); left > want || left < want-time.Minute {
				t.Errorf("may be used for %s, want %s", left, want)
			}
		})
	}
	data, err := os.ReadFile(h.config.State + "/" + ledgerFile)
	if err != nil {
		t.Fatal(err)
	}
	if secret := strings.Split(h.token(nodeID), ".")[2]; strings.Contains(string(data), secret) {
		t.Fatal("a secret is on disk")
	}
}

func TestAdminSocketIsForOneUser(t *testing.T) {
	h := start(t, nil)
	info, err := os.Stat(strings.TrimPrefix(h.config.Admin, "unix://"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("got %v, %v", info.Mode(), err)
	}
}

func TestIstioCertificateService(t *testing.T) {
	h := start(t, nil)
	client := istiopb.NewIstioCertificateServiceClient(h.adminConn())
	asPEM := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	for _, tc := range []struct {
		name, id string
		seconds  int64
		life     time.Duration
		want     codes.Code
	}{
		{"default life", reviewsID, 0, time.Hour, codes.OK},
		{"wanted life", reviewsID, 600, 10 * time.Minute, codes.OK},
		{"longest life", reviewsID, 1 << 60, 24 * time.Hour, codes.OK},
		{"negative life", reviewsID, -1, 0, codes.InvalidArgument},
		{"no identity", "", 0, 0, codes.InvalidArgument},
		{"foreign", "spiffe://" + foreignTD + "/ns/a/sa/b", 0, 0, codes.PermissionDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			key, der := request(t, tc.id)
			resp, err := client.CreateCertificate(t.Context(), &istiopb.IstioCertificateRequest{Csr: asPEM(der), ValidityDuration: tc.seconds})
			wantCode(t, err, tc.want)
			if err != nil {
				return
			}
			chain := resp.GetCertChain()
			if root := chain[len(chain)-1]; len(chain) != 2 || root != string(mustRead(t, h.config.trustBundle())) {
				t.Fatalf("chain of %d does not end in the root", len(chain))
			}
			block, _ := pem.Decode([]byte(chain[0]))
			svid := h.svid(&capb.CertificateResponse{Chain: [][]byte{block.Bytes}}, key)
			if left := time.Until(svid.Certificates[0].NotAfter); svid.ID.String() != tc.id || left > tc.life || left < tc.life-time.Minute {
				t.Fatalf("got %s for %s", svid.ID, left)
			}
		})
	}
	_, err := client.CreateCertificate(t.Context(), &istiopb.IstioCertificateRequest{Csr: "x"})
	wantCode(t, err, codes.InvalidArgument)
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
