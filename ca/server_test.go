package ca

import (
	"context"
	"crypto/tls"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/config"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func TestJoinThenRenew(t *testing.T) {
	h := start(t, nil)
	for _, id := range []string{nodeID, pilotID} {
		key, der := request(t, "")
		resp, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: h.token(id)}, Csr: der})
		if err != nil {
			t.Fatal(err)
		}
		joined := h.svid(resp, key)
		if joined.ID.String() != id {
			t.Fatalf("joined as %s, want %s", joined.ID, id)
		}
		key, der = request(t, id)
		resp, err = h.as(joined).Renew(t.Context(), &capb.RenewRequest{Csr: der})
		if err != nil {
			t.Fatal(err)
		}
		renewed := h.svid(resp, key)
		if renewed.ID != joined.ID || renewed.Certificates[0].SerialNumber.Cmp(joined.Certificates[0].SerialNumber) == 0 {
			t.Fatalf("renewed as %s", renewed.ID)
		}
		if life := time.Until(renewed.Certificates[0].NotAfter).Round(time.Minute); life != time.Hour {
			t.Fatalf("life is %s, want 1h", life)
		}
		got := h.ledger(&capb.ListCertificatesRequest{SpiffeId: id})
		if len(got) != 2 || got[0].GetRequester() != "join-token" || got[1].GetRequester() != id {
			t.Fatalf("ledger: %v", got)
		}
	}
}

// One line for each caller and method: who may call what.
func TestWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	other := start(t, func(c *Config) { c.TrustDomain = td.Name() }) // same name, another root
	foreign := other.mint(nodeID)
	callers := map[string]*x509svid.SVID{
		"nobody": nil, "node": h.mint(nodeID), "service": h.mint(pilotID), "workload": h.mint(reviewsID),
		"authority": h.mint("spiffe://example.org/writ/ca"), "other": h.mint("spiffe://example.org/somebody"), "foreign": foreign,
	}
	_, der := request(t, "")
	calls := map[string]func(capb.CertificateAuthorityClient) error{
		"Join": func(c capb.CertificateAuthorityClient) error {
			_, err := c.Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: h.token(nodeID)}, Csr: der})
			return err
		},
		"Renew": func(c capb.CertificateAuthorityClient) error {
			_, err := c.Renew(t.Context(), &capb.RenewRequest{Csr: der})
			return err
		},
		"Issue": func(c capb.CertificateAuthorityClient) error {
			_, err := c.Issue(t.Context(), &capb.IssueRequest{SpiffeId: reviewsID, Csr: der})
			return err
		},
		"WatchBundle": func(c capb.CertificateAuthorityClient) error {
			s, err := c.WatchBundle(t.Context())
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
	}
	const ok, no, away = codes.OK, codes.PermissionDenied, codes.Unavailable
	for caller, want := range map[string]map[string]codes.Code{
		"nobody":    {"Join": ok, "Renew": no, "Issue": no, "WatchBundle": no},
		"node":      {"Join": ok, "Renew": ok, "Issue": no, "WatchBundle": ok}, // nothing is placed on it
		"service":   {"Join": ok, "Renew": ok, "Issue": no, "WatchBundle": ok},
		"workload":  {"Join": ok, "Renew": no, "Issue": no, "WatchBundle": no},
		"authority": {"Join": ok, "Renew": no, "Issue": no, "WatchBundle": no},
		"other":     {"Join": ok, "Renew": no, "Issue": no, "WatchBundle": no},
		"foreign":   {"Join": away, "Renew": away, "Issue": away, "WatchBundle": away}, // no TLS handshake
	} {
		for method, code := range want {
			t.Run(caller+" "+method, func(t *testing.T) {
				wantCode(t, calls[method](h.as(callers[caller])), code)
			})
		}
	}
}

func TestTokenIsGoodOnce(t *testing.T) {
	h := start(t, nil)
	token := h.token(nodeID)
	_, der := request(t, "")
	h.restart() // tokens survive it
	const racers = 8
	codesSeen := make(chan codes.Code, racers)
	var wg sync.WaitGroup
	for range racers {
		c := h.as(nil)
		wg.Go(func() {
			_, err := c.Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: token}, Csr: der})
			codesSeen <- status.Code(err)
		})
	}
	wg.Wait()
	close(codesSeen)
	count := make(map[codes.Code]int)
	for c := range codesSeen {
		count[c]++
	}
	if count[codes.OK] != 1 || count[codes.PermissionDenied] != racers-1 {
		t.Fatalf("got %v, want one winner", count)
	}
	h.restart() // and so does their use
	_, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: token}, Csr: der})
	wantCode(t, err, codes.PermissionDenied)
	if got := h.ledger(&capb.ListCertificatesRequest{SpiffeId: nodeID}); len(got) != 1 {
		t.Fatalf("%d certificates for one token", len(got))
	}
}

func TestBadTokens(t *testing.T) {
	h := start(t, nil)
	good := h.token(nodeID)
	other := h.token(nodeID)
	mixed := good[:strings.LastIndex(good, ".")] + other[strings.LastIndex(other, "."):]
	_, der := request(t, "")
	var texts []string
	for _, token := range []string{"", "x", good + "x", good[:len(good)-2], mixed, strings.Replace(good, "writ-join", "writ-koin", 1)} {
		_, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: token}, Csr: der})
		wantCode(t, err, codes.PermissionDenied)
		texts = append(texts, status.Convert(err).Message())
	}
	for _, text := range texts {
		if text != tokenRefused {
			t.Errorf("a stranger learns: %s", text)
		}
	}
	// A request that is refused for another reason does not use up the token.
	_, forOther := request(t, pilotID)
	for _, bad := range [][]byte{nil, []byte("x"), forOther} {
		_, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: good}, Csr: bad})
		wantCode(t, err, codes.InvalidArgument)
	}
	if _, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: good}, Csr: der}); err != nil {
		t.Fatal(err)
	}
}

func TestNodeGetsWhatIsPlacedOnIt(t *testing.T) {
	t.Parallel()
	pilot := newFakePilot(t)
	pilot.place("n1", reviewsID)
	pilot.place("n2", ratingsID)
	h := start(t, func(c *Config) { c.Pilot = pilot.addr; c.PlacementWait = config.Duration(200 * time.Millisecond) })
	n1 := h.as(h.mint(nodeID))
	issue := func(id, inCSR string) error {
		key, der := request(t, inCSR)
		resp, err := n1.Issue(t.Context(), &capb.IssueRequest{SpiffeId: id, Csr: der, Ttl: durationpb.New(time.Minute)})
		if err != nil {
			return err
		}
		if svid := h.svid(resp, key); svid.ID.String() != id || time.Until(svid.Certificates[0].NotAfter) > time.Minute {
			t.Fatalf("got %s until %s", svid.ID, svid.Certificates[0].NotAfter)
		}
		return nil
	}
	h.eventually("the placement arrives", func() bool { return issue(reviewsID, "") == nil })
	for _, tc := range []struct {
		name, id, csr string
		want          codes.Code
	}{
		{"placed", reviewsID, "", codes.OK},
		{"placed, named in the request", reviewsID, reviewsID, codes.OK},
		{"another identity in the request", reviewsID, ratingsID, codes.InvalidArgument},
		{"another node's", ratingsID, "", codes.PermissionDenied},
		{"another node's, in the request only", "", ratingsID, codes.InvalidArgument},
		{"another node itself", "spiffe://example.org/writ/node/n2", "", codes.PermissionDenied},
		{"its own", nodeID, "", codes.PermissionDenied},
		{"pilot", pilotID, "", codes.PermissionDenied},
		{"the authority", "spiffe://example.org/writ/ca", "", codes.PermissionDenied},
		{"the trust domain", "spiffe://example.org", "", codes.InvalidArgument},
		{"foreign", "spiffe://" + foreignTD + "/ns/default/sa/reviews", "", codes.PermissionDenied},
		{"prefix", reviewsID + "/x", "", codes.PermissionDenied},
		{"dots", "spiffe://example.org/ns/default/sa/x/../reviews", "", codes.InvalidArgument},
		{"nothing", "", "", codes.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) { wantCode(t, issue(tc.id, tc.csr), tc.want) })
	}
}

// A workload may start a moment before its placement gets here: the call waits.
func TestIssueWaitsForPlacement(t *testing.T) {
	pilot := newFakePilot(t)
	h := start(t, func(c *Config) { c.Pilot = pilot.addr; c.PlacementWait = config.Duration(10 * time.Second) })
	n1 := h.as(h.mint(nodeID))
	_, der := request(t, "")
	done := make(chan error, 1)
	go func() {
		_, err := n1.Issue(context.WithoutCancel(t.Context()), &capb.IssueRequest{SpiffeId: reviewsID, Csr: der})
		done <- err
	}()
	h.eventually("pilot hears from the authority", pilot.subscribed)
	pilot.place("n1", reviewsID)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// While pilot is away the placements known last are in force, also after a
// restart.
func TestPlacementsOutlivePilotAndRestart(t *testing.T) {
	pilot := newFakePilot(t)
	pilot.place("n1", reviewsID)
	h := start(t, func(c *Config) { c.Pilot = pilot.addr; c.PlacementWait = config.Duration(100 * time.Millisecond) })
	svid := h.mint(nodeID)
	_, der := request(t, "")
	issue := func(id string) error {
		_, err := h.as(svid).Issue(t.Context(), &capb.IssueRequest{SpiffeId: id, Csr: der})
		return err
	}
	h.eventually("the placement arrives", func() bool { return issue(reviewsID) == nil })
	pilot.stop()
	h.restart()
	if err := issue(reviewsID); err != nil {
		t.Fatal(err)
	}
	wantCode(t, issue(ratingsID), codes.PermissionDenied)
}

func TestTTL(t *testing.T) {
	h := start(t, func(c *Config) {
		c.WorkloadTTL, c.MaxTTL = config.Duration(10*time.Second), config.Duration(2*time.Hour)
	})
	for _, tc := range []struct {
		name  string
		asked *durationpb.Duration
		want  time.Duration
		code  codes.Code
	}{
		{"default", nil, 10 * time.Second, codes.OK},
		{"zero", durationpb.New(0), 10 * time.Second, codes.OK},
		{"wanted", durationpb.New(30 * time.Minute), 30 * time.Minute, codes.OK},
		{"maximum", durationpb.New(240 * time.Hour), 2 * time.Hour, codes.OK},
		{"too short", durationpb.New(9 * time.Second), 0, codes.InvalidArgument},
		{"negative", durationpb.New(-time.Hour), 0, codes.InvalidArgument},
		{"out of range", &durationpb.Duration{Seconds: 1 << 62}, 0, codes.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			key, der := request(t, "")
			before := time.Now()
			resp, err := h.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: der, Ttl: tc.asked})
			wantCode(t, err, tc.code)
			if err != nil {
				return
			}
			leaf := h.svid(resp, key).Certificates[0]
			if d := leaf.NotAfter.Sub(before.Add(tc.want)); d < -time.Second || d > 2*time.Second {
				t.Errorf("valid until %s, asked at %s", leaf.NotAfter, before)
			}
			if back := before.Sub(leaf.NotBefore); back < 0 || back > min(12*time.Second, tc.want/10+2*time.Second) {
				t.Errorf("backdated by %s", back)
			}
		})
	}
}

func TestBundleIsWatched(t *testing.T) {
	h := start(t, nil)
	s, err := h.as(h.mint(nodeID)).WatchBundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Recv()
	if err != nil || b.GetTrustDomain() != td.Name() || len(b.GetRoots()) != 1 || b.GetSequence() == 0 {
		t.Fatalf("got %v, %v", b, err)
	}
	// The stream does not hold up the end of the process.
	begin := time.Now()
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Fatalf("stopping took %s", took)
	}
	if _, err := s.Recv(); err == nil {
		t.Fatal("the stream goes on")
	}
}

func TestServerIsTLS13Only(t *testing.T) {
	h := start(t, nil)
	c := tlsconfig.TLSClientConfig(h.bundle(), tlsconfig.AuthorizeAny())
	c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	client := capb.NewCertificateAuthorityClient(h.dial(h.config.Listen, credentials.NewTLS(c)))
	_, err := client.Join(t.Context(), &capb.JoinRequest{})
	wantCode(t, err, codes.Unavailable)
}

// The server certificate is renewed in memory, and connections made with an
// expired client certificate are told to connect anew.
func TestShortLives(t *testing.T) {
	t.Parallel()
	h := start(t, func(c *Config) { c.ServiceTTL = config.Duration(minTTL) })
	before := h.ledger(&capb.ListCertificatesRequest{SpiffeId: "spiffe://example.org/writ/ca"})
	h.eventually("the server certificate is renewed", func() bool {
		return len(h.ledger(&capb.ListCertificatesRequest{SpiffeId: "spiffe://example.org/writ/ca"})) > len(before)
	})
	_, der := request(t, "")
	if _, err := h.as(h.mint(nodeID)).Renew(t.Context(), &capb.RenewRequest{Csr: der}); err != nil {
		t.Fatal(err)
	}
}
