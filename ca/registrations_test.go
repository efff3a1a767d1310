package ca

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func (h *harness) registrations() capb.RegistrationsClient {
	return capb.NewRegistrationsClient(h.adminConn())
}

func (h *harness) register(id, node string, facts ...string) *capb.Registration {
	h.t.Helper()
	r, err := h.registrations().PutRegistration(h.t.Context(), &capb.PutRegistrationRequest{SpiffeId: id, Node: node, AllNodes: node == "", Facts: facts})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *harness) registered(req *capb.ListRegistrationsRequest) []*capb.Registration {
	h.t.Helper()
	stream, err := h.registrations().ListRegistrations(h.t.Context(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	var out []*capb.Registration
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			h.t.Fatal(err)
		}
		out = append(out, r)
	}
}

// watch follows the registrations as the agent of a node.
func (h *harness) watch(svid *x509svid.SVID, digest []byte) func() *capb.RegistrationUpdate {
	h.t.Helper()
	c := tlsconfig.MTLSClientConfig(svid, h.bundle(), tlsconfig.AuthorizeID(spiffeid.RequireFromPath(td, "/writ/ca")))
	ctx, cancel := context.WithTimeout(h.t.Context(), testBudget)
	h.t.Cleanup(cancel)
	stream, err := capb.NewNodeRegistrationsClient(h.dial(h.config.Listen, credentials.NewTLS(c))).WatchRegistrations(ctx, &capb.WatchRegistrationsRequest{Digest: digest})
	if err != nil {
		h.t.Fatal(err)
	}
	return func() *capb.RegistrationUpdate {
		h.t.Helper()
		u, err := stream.Recv()
		if err != nil {
			h.t.Fatal(err)
		}
		return u
	}
}

func ids(rs []*capb.Registration) string {
	var out []string
	for _, r := range rs {
		out = append(out, strings.TrimPrefix(r.GetSpiffeId(), "spiffe://example.org/ns/default/sa/"))
	}
	return strings.Join(out, " ")
}

func TestRegistration(t *testing.T) {
	h := start(t, func(c *Config) { c.PlacementWait = 0 })
	node, other := h.mint(nodeID), h.mint("spiffe://example.org/writ/node/n2")
	issue := func(svid *x509svid.SVID, id string) error {
		_, der := request(t, "")
		_, err := h.as(svid).Issue(t.Context(), &capb.IssueRequest{SpiffeId: id, Csr: der})
		return err
	}
	next := h.watch(node, nil)
	if u := next(); !u.GetFull() || !u.GetComplete() || len(u.GetPut()) != 0 {
		t.Errorf("at first %v", u)
	}
	wantCode(t, issue(node, reviewsID), codes.PermissionDenied)

	r := h.register(reviewsID, "n1", "unix:uid:1000", "unix:gid:7", "unix:uid:1000")
	if r.GetCreatedBy() == "" || len(r.GetFacts()) != 2 || r.GetNode() != "n1" {
		t.Errorf("registered as %v", r)
	}
	if again := h.register(reviewsID, "n1", "unix:gid:7", "unix:uid:1000"); again.GetId() != r.GetId() || !again.GetCreatedAt().AsTime().Equal(r.GetCreatedAt().AsTime()) {
		t.Errorf("the same again is %v", again)
	}
	if u := next(); u.GetFull() || !u.GetComplete() || ids(u.GetPut()) != "reviews" || u.GetPut()[0].GetId() != r.GetId() {
		t.Errorf("told %v", u)
	}
	wantCode(t, issue(node, reviewsID), codes.OK)
	wantCode(t, issue(other, reviewsID), codes.PermissionDenied) // another node's identity
	h.register(ratingsID, "", "unix:uid:1001")
	if u := next(); ids(u.GetPut()) != "ratings" {
		t.Errorf("told %v", u)
	}
	wantCode(t, issue(other, ratingsID), codes.OK)
	h.register(reviewsID, "n3", "unix:uid:5") // nobody's business here
	if u := h.watch(other, nil)(); ids(u.GetPut()) != "ratings" {
		t.Errorf("another node is told %v", u)
	}
	if got := h.registered(&capb.ListRegistrationsRequest{Node: "n1"}); len(got) != 2 {
		t.Errorf("listed %v", got)
	}
	if got := h.registered(&capb.ListRegistrationsRequest{SpiffeId: reviewsID}); len(got) != 2 {
		t.Errorf("listed %v", got)
	}

	h.restart()
	wantCode(t, issue(node, ratingsID), codes.OK)
	if u := h.watch(node, nil)(); !u.GetFull() || len(u.GetPut()) != 2 {
		t.Errorf("after a restart %v", u)
	}
	if _, err := h.registrations().DeleteRegistration(t.Context(), &capb.DeleteRegistrationRequest{Id: r.GetId()}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, issue(node, reviewsID), codes.PermissionDenied)
	_, err := h.registrations().DeleteRegistration(t.Context(), &capb.DeleteRegistrationRequest{Id: r.GetId()})
	wantCode(t, err, codes.InvalidArgument)
}

// TestRegistrationsAreSentOnce: an agent that has them all gets none.
func TestRegistrationsAreSentOnce(t *testing.T) {
	h := start(t, nil)
	node := h.mint(nodeID)
	r := h.register(reviewsID, "n1", "unix:uid:1000")
	sum := sha256.Sum256([]byte(r.GetId() + "\n"))
	next := h.watch(node, sum[:])
	if u := next(); u.GetFull() || !u.GetComplete() || len(u.GetPut()) != 0 {
		t.Errorf("it is sent %v", u)
	}
	if _, err := h.registrations().DeleteRegistration(t.Context(), &capb.DeleteRegistrationRequest{Id: r.GetId()}); err != nil {
		t.Fatal(err)
	}
	if u := next(); len(u.GetDelete()) != 1 || u.GetDelete()[0] != r.GetId() {
		t.Errorf("told %v", u)
	}
}

func TestManyRegistrationsAreSentInParts(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	node := h.mint(nodeID)
	const n = registrationChunk + 5
	for i := range n {
		h.register(reviewsID, "", "docker:name:c"+strings.Repeat("x", i))
	}
	got, next := 0, h.watch(node, nil)
	for parts := 1; ; parts++ {
		u := next()
		if u.GetFull() != (parts == 1) {
			t.Errorf("part %d: %v", parts, u.GetFull())
		}
		if got += len(u.GetPut()); u.GetComplete() {
			if got != n || parts != 2 {
				t.Errorf("%d in %d parts", got, parts)
			}
			return
		}
	}
}

func TestWhatCannotBeRegistered(t *testing.T) {
	h := start(t, nil)
	for name, tc := range map[string]*capb.PutRegistrationRequest{
		"nowhere":              {SpiffeId: reviewsID, Facts: []string{"unix:uid:1"}},
		"here and everywhere":  {SpiffeId: reviewsID, Node: "n1", AllNodes: true, Facts: []string{"unix:uid:1"}},
		"by nothing":           {SpiffeId: reviewsID, Node: "n1"},
		"by no fact":           {SpiffeId: reviewsID, Node: "n1", Facts: []string{"uid 1"}},
		"a service of Writ":    {SpiffeId: pilotID, Node: "n1", Facts: []string{"unix:uid:1"}},
		"a node":               {SpiffeId: nodeID, Node: "n1", Facts: []string{"unix:uid:1"}},
		"another trust domain": {SpiffeId: "spiffe://" + foreignTD + "/ns/default/sa/reviews", Node: "n1", Facts: []string{"unix:uid:1"}},
		"no SPIFFE ID":         {SpiffeId: "reviews", Node: "n1", Facts: []string{"unix:uid:1"}},
	} {
		if _, err := h.registrations().PutRegistration(t.Context(), tc); err == nil {
			t.Errorf("%s: it is registered", name)
		} else {
			wantCode(t, err, codes.InvalidArgument)
		}
	}
	_, err := h.registrations().DeleteRegistration(t.Context(), &capb.DeleteRegistrationRequest{Id: "../roots"})
	wantCode(t, err, codes.InvalidArgument)
}

// TestOnlyNodesFollowRegistrations, and each those of its own node: no field says
// another.
func TestOnlyNodesFollowRegistrations(t *testing.T) {
	h := start(t, nil)
	for _, id := range []string{pilotID, reviewsID} {
		svid := h.mint(id)
		c := tlsconfig.MTLSClientConfig(svid, h.bundle(), tlsconfig.AuthorizeID(spiffeid.RequireFromPath(td, "/writ/ca")))
		stream, err := capb.NewNodeRegistrationsClient(h.dial(h.config.Listen, credentials.NewTLS(c))).WatchRegistrations(t.Context(), &capb.WatchRegistrationsRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		wantCode(t, err, codes.PermissionDenied)
	}
}

// TestDamagedRegistrationGivesNothing: what stands in the ledger is checked again
// when it is read.
func TestDamagedRegistrationGivesNothing(t *testing.T) {
	h := start(t, nil)
	good := h.register(ratingsID, "n1", "unix:uid:1")
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	store, err := filelog.Open(filepath.Join(h.config.State, ledgerFile), filelog.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{
		"00": "{",
		"01": `{"spiffe_id":"` + pilotID + `","facts":["unix:uid:1"]}`,
		"02": `{"spiffe_id":"` + reviewsID + `","facts":["unix:uid:1"]}`, // of another id
	} {
		if _, err := store.Commit(t.Context(), ledger.Change{Entry: ledger.Entry{Kind: ledger.Registered, Time: time.Now()}, Put: map[string][]byte{registrationPrefix + key: []byte(value)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	h.run()
	if u := h.watch(h.mint(nodeID), nil)(); len(u.GetPut()) != 1 || u.GetPut()[0].GetId() != good.GetId() {
		t.Errorf("the node is told %v", u)
	}
}
