package ca

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/revocation"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func (h *harness) revocations() capb.RevocationsClient {
	return capb.NewRevocationsClient(h.adminConn())
}

func (h *harness) revoke(req *capb.RevokeRequest) *capb.RevokeResponse {
	h.t.Helper()
	resp, err := h.revocations().Revoke(h.t.Context(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp
}

func (h *harness) list() *capb.RevocationList {
	h.t.Helper()
	l, err := h.revocations().ListRevocations(h.t.Context(), &capb.ListRevocationsRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

func bySerial(serial string) *capb.RevokeRequest {
	return &capb.RevokeRequest{Subject: &capb.RevokeRequest_Serial{Serial: serial}, Reason: capb.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE}
}

func byID(id string) *capb.RevokeRequest {
	return &capb.RevokeRequest{Subject: &capb.RevokeRequest_SpiffeId{SpiffeId: id}}
}

func serialOf(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

// inCRLs tells for serial numbers whether one of the lists has them.
func inCRLs(t *testing.T, roots []*x509.Certificate, crls [][]byte) map[string]bool {
	t.Helper()
	if len(crls) != len(roots) {
		t.Fatalf("%d lists for %d roots", len(crls), len(roots))
	}
	out := map[string]bool{}
	for _, der := range crls {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		signed := false
		for _, r := range roots {
			signed = signed || l.CheckSignatureFrom(r) == nil
		}
		if !signed {
			t.Error("a list is no root's")
		}
		for _, e := range l.RevokedCertificateEntries {
			out[hex.EncodeToString(e.SerialNumber.Bytes())] = true
		}
	}
	return out
}

func TestRevokedIdentity(t *testing.T) {
	h := start(t, nil)
	first, second, other := h.mint(reviewsID), h.mint(reviewsID), h.mint(ratingsID)
	h.revoke(byID(reviewsID))
	_, csr := request(t, reviewsID)
	_, err := h.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: csr})
	wantCode(t, err, codes.PermissionDenied)
	if err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("the refusal is %v and does not say why", err)
	}
	if h.mint(ratingsID) == nil {
		t.Error("another identity gets nothing")
	}
	l := h.list()
	revoked := inCRLs(t, h.bundle().X509Authorities(), l.GetCrls())
	if !revoked[serialOf(first.Certificates[0])] || !revoked[serialOf(second.Certificates[0])] || revoked[serialOf(other.Certificates[0])] {
		t.Errorf("the lists have %v", revoked)
	}
	if again := h.revoke(byID(reviewsID)); !again.GetAlready() {
		t.Error("what is revoked was revoked again")
	}
	h.restart()
	if _, err = h.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: csr}); err == nil {
		t.Error("a restart takes a revocation back")
	}
	if _, err := h.revocations().Unrevoke(t.Context(), &capb.UnrevokeRequest{Subject: &capb.UnrevokeRequest_SpiffeId{SpiffeId: reviewsID}}); err != nil {
		t.Fatal(err)
	}
	h.mint(reviewsID)
	after := h.list()
	if n := len(inCRLs(t, h.bundle().X509Authorities(), after.GetCrls())); n != 0 || len(after.GetRevocations()) != 0 {
		t.Errorf("%d certificates are still in the lists", n)
	}
	if after.GetSequence() <= l.GetSequence() {
		t.Errorf("the number went from %d to %d", l.GetSequence(), after.GetSequence())
	}
	kinds := map[ledger.Kind]int{}
	for _, r := range h.entries() {
		e, err := r.Entry()
		if err != nil {
			t.Fatal(err)
		}
		kinds[e.Kind]++
	}
	if kinds[ledger.Revoked] != 1 || kinds[ledger.Unrevoked] != 1 {
		t.Errorf("the ledger has %v", kinds)
	}
}

func TestRevokedCaller(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	node := h.mint(nodeID)
	live := h.as(node)
	key, csr := request(t, "")
	if _, err := live.Renew(t.Context(), &capb.RenewRequest{Csr: csr}); err != nil {
		t.Fatal(err)
	}
	feed, err := capb.NewRevocationFeedClient(h.connAs(node)).WatchRevocations(t.Context(), &capb.WatchRevocationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := feed.Recv(); err != nil {
		t.Fatal(err)
	}
	bundles, err := live.WatchBundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan *capb.RevocationList, 10)
	go func() {
		defer close(told)
		for {
			l, err := feed.Recv()
			if err != nil {
				return
			}
			told <- l
		}
	}()
	h.revoke(bySerial(strings.ToUpper(serialOf(node.Certificates[0]))))
	// He is refused, until the connection ends, and then has none.
	if _, err = live.Renew(t.Context(), &capb.RenewRequest{Csr: csr}); status.Code(err) != codes.PermissionDenied && status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want a refusal", err)
	}
	if l := <-told; len(l.GetRevocations()) != 1 {
		t.Errorf("a revoked watcher is told %v", l)
	}
	if l, more := <-told; more {
		t.Errorf("a revoked watcher is told more: %v", l)
	}
	// The streams that he has end.
	proctest.Until(t, 5*time.Second, "the stream of the bundle has ended", func() bool { _, err := bundles.Recv(); return err != nil })
	_, err = h.as(node).Renew(t.Context(), &capb.RenewRequest{Csr: csr})
	wantCode(t, err, codes.Unavailable) // no connection comes about
	// The identity itself is good: another proof gets a certificate.
	resp, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: h.token(nodeID)}, Csr: csr})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.as(h.svid(resp, key)).Renew(t.Context(), &capb.RenewRequest{Csr: csr}); err != nil {
		t.Error(err)
	}
	h.revoke(byID(nodeID))
	_, err = h.as(nil).Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: h.token(nodeID)}, Csr: csr})
	wantCode(t, err, codes.PermissionDenied)
}

func TestRevocationFeed(t *testing.T) {
	h := start(t, nil)
	conn := h.connAs(h.mint(pilotID))
	stream, err := capb.NewRevocationFeedClient(h.connAs(h.mint(ratingsID))).WatchRevocations(t.Context(), &capb.WatchRevocationsRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.PermissionDenied)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	feed, err := capb.NewRevocationFeedClient(conn).WatchRevocations(ctx, &capb.WatchRevocationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := feed.Recv()
	if err != nil || len(l.GetRevocations()) != 0 || len(l.GetCrls()) != 1 {
		t.Fatalf("the first list is %v, error %v", l, err)
	}
	svid := h.mint(reviewsID)
	said := h.revoke(bySerial(serialOf(svid.Certificates[0])))
	if l, err = feed.Recv(); err != nil {
		t.Fatal(err)
	}
	r := l.GetRevocations()
	if len(r) != 1 || r[0].GetSpiffeId() != reviewsID || r[0].GetReason() != capb.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE || r[0].GetSequence() != said.GetSequence() {
		t.Errorf("the list has %v", r)
	}
	if l.GetSequence() != said.GetSequence() || !inCRLs(t, h.bundle().X509Authorities(), l.GetCrls())[serialOf(svid.Certificates[0])] {
		t.Errorf("list %d came, %d was told", l.GetSequence(), said.GetSequence())
	}
}

func TestWhatCannotBeRevoked(t *testing.T) {
	h := start(t, nil)
	for name, c := range map[string]struct {
		req  *capb.RevokeRequest
		code codes.Code
		text string
	}{
		"nothing":          {&capb.RevokeRequest{}, codes.InvalidArgument, ""},
		"no serial":        {bySerial("xyz"), codes.InvalidArgument, "hexadecimal"},
		"unknown":          {bySerial("0a1b"), codes.InvalidArgument, "no certificate"},
		"long":             {bySerial(strings.Repeat("ab", 200)), codes.InvalidArgument, "20 bytes"},
		"another domain":   {byID("spiffe://" + foreignTD + "/ns/a/sa/b"), codes.InvalidArgument, "trust domain"},
		"the authority":    {byID("spiffe://example.org/writ/ca"), codes.InvalidArgument, "own identity"},
		"unknown reason":   {&capb.RevokeRequest{Subject: &capb.RevokeRequest_SpiffeId{SpiffeId: reviewsID}, Reason: 8}, codes.InvalidArgument, "reason"},
		"no SPIFFE ID":     {byID("reviews"), codes.InvalidArgument, ""},
		"one byte of zero": {bySerial("00"), codes.InvalidArgument, ""},
	} {
		_, err := h.revocations().Revoke(t.Context(), c.req)
		wantCode(t, err, c.code)
		if err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v does not say %q", name, err, c.text)
		}
	}
	for _, r := range h.ledger(&capb.ListCertificatesRequest{SpiffeId: "spiffe://example.org/writ/ca"}) {
		_, err := h.revocations().Revoke(t.Context(), bySerial(r.GetSerial()))
		wantCode(t, err, codes.InvalidArgument)
	}
	_, err := h.revocations().Unrevoke(t.Context(), &capb.UnrevokeRequest{Subject: &capb.UnrevokeRequest_SpiffeId{SpiffeId: reviewsID}})
	wantCode(t, err, codes.FailedPrecondition)
}

// TestRevokedWhileIssuing revokes an identity while certificates are issued for it:
// whoever got one has it in the list.
func TestRevokedWhileIssuing(t *testing.T) {
	h := start(t, nil)
	var mu sync.Mutex
	var got []string
	var wg sync.WaitGroup
	for range 8 {
		conn := h.admin()
		wg.Go(func() {
			for {
				_, csr := request(t, "")
				resp, err := conn.Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: csr})
				if err != nil {
					wantCode(t, err, codes.PermissionDenied)
					return
				}
				cert, err := x509.ParseCertificate(resp.GetChain()[0])
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				got = append(got, serialOf(cert))
				mu.Unlock()
			}
		})
	}
	h.eventually("some are issued", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) > 20 })
	h.revoke(byID(reviewsID))
	wg.Wait()
	revoked := inCRLs(t, h.bundle().X509Authorities(), h.list().GetCrls())
	for _, serial := range got {
		if !revoked[serial] {
			t.Errorf("%s was issued and is not in the list", serial)
		}
	}
}

// TestBadRevocationDocument: what cannot be read neither stops the authority nor
// frees the identity.
func TestBadRevocationDocument(t *testing.T) {
	h := start(t, nil)
	h.revoke(byID(ratingsID))
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	store, err := openStore(t.Context(), h.config, newMetrics(newRuntime().Metrics), new(atomic.Bool), newRuntime())
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.Commit(t.Context(), ledger.Change{
		Entry: ledger.Entry{Kind: ledger.Revoked, Time: time.Now()},
		Put:   map[string][]byte{revocation.IdentityKey(reviewsID): []byte("{")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	h.run()
	_, csr := request(t, "")
	_, err = h.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: csr})
	wantCode(t, err, codes.PermissionDenied)
	h.mint(nodeID)
	l := h.list()
	if l.GetProblem() == "" || len(l.GetRevocations()) != 1 || len(l.GetCrls()) != 1 {
		t.Errorf("the list is %v", l)
	}
}

func TestServedCRL(t *testing.T) {
	addr := proctest.Address(t)
	h := start(t, func(c *Config) { c.CRL.Listen = addr })
	h.revoke(bySerial(serialOf(h.mint(reviewsID).Certificates[0])))
	get := func(path string) (int, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Timeout: testBudget}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, body
	}
	// The list may be made anew once more after the revocation.
	h.eventually("both ways give the same list", func() bool {
		want := h.list().GetCrls()[0]
		code, der := get("/crl/" + hex.EncodeToString(h.bundle().X509Authorities()[0].SubjectKeyId) + ".crl")
		_, body := get("/crl.pem")
		block, _ := pem.Decode(body)
		return code == http.StatusOK && string(der) == string(want) && block != nil && string(block.Bytes) == string(want)
	})
	if code, _ := get("/crl/abc.crl"); code != http.StatusNotFound {
		t.Errorf("an unknown authority's list is answered with %d", code)
	}
}
