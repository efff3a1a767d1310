package nodeagent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

var (
	domainID   = spiffeid.RequireTrustDomainFromString(domain)
	workloadID = spiffeid.RequireFromString(spiffeID)
)

// workloadRig is a rig in which the test is the workload, and its client is that
// of go-spiffe.
func workloadRig(t *testing.T, life time.Duration) (*rig, *workloadapi.Client, context.Context) {
	t.Helper()
	r := newRig(t, life)
	uid := uint32(os.Getuid())
	r.place(t, proxyID, &uid)
	r.start(t)
	r.connected(t)
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	t.Cleanup(cancel)
	c, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+r.socket()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return r, c, ctx
}

// TestWorkloadAPI: go-spiffe's client gets everything there is, and what it gets is
// good for others.
func TestWorkloadAPI(t *testing.T) {
	t.Parallel()
	r, c, ctx := workloadRig(t, time.Hour)
	own, err := c.FetchX509Context(ctx)
	if err != nil {
		t.Fatal(err)
	}
	svid := own.DefaultSVID()
	if id, _, err := x509svid.Verify(svid.Certificates, own.Bundles); err != nil || id != workloadID {
		t.Errorf("%s, %v", id, err)
	}
	roots, err := c.FetchX509Bundles(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if b, ok := roots.Get(domainID); !ok || roots.Len() != 1 || !b.HasX509Authority(r.root.Cert) {
		t.Error("the bundle is another")
	}
	token, err := c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a", ExtraAudiences: []string{"b"}, Subject: workloadID})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "b", ExtraAudiences: []string{"a"}}); err != nil || again.Marshal() != token.Marshal() || r.ca.jwt.count() != 1 {
		t.Errorf("another token, or %v; %d issued", err, r.ca.jwt.count())
	}
	keys, err := c.FetchJWTBundles(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := jwtsvid.ParseAndValidate(token.Marshal(), keys, []string{"b"}); err != nil || v.ID != workloadID || len(v.Audience) != 2 {
		t.Errorf("%v, %v", v, err)
	}
	if v, err := c.ValidateJWTSVID(ctx, token.Marshal(), "a"); err != nil || v.ID != workloadID || v.Claims["sub"] != spiffeID {
		t.Errorf("%v, %v", v, err)
	}
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClient(c))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	if v, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "c"}); err != nil || v.ID != workloadID {
		t.Errorf("%v, %v", v, err)
	}
	if b, err := source.GetJWTBundleForTrustDomain(domainID); err != nil || len(b.JWTAuthorities()) != 1 {
		t.Errorf("%v, %v", b, err)
	}
	// The next keys are pushed.
	r.ca.jwt.newKeys(t)
	proctest.Eventually(t, bound, func() error {
		_, err := c.ValidateJWTSVID(ctx, token.Marshal(), "a")
		if status.Code(err) != codes.InvalidArgument {
			return fmt.Errorf("a token of a key that is gone: %w", err)
		}
		return nil
	})
	if v, err := c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a", ExtraAudiences: []string{"b"}}); err != nil || v.Marshal() == token.Marshal() {
		t.Errorf("a token of a key that is gone is handed out, or %v", err)
	}
	if v := r.metric(t, `writ_nodeagent_jwt_svids_total{result="cached"}`); v != "1" {
		t.Errorf("cached: %s", v)
	}
	if v := r.metric(t, `writ_nodeagent_workload_api_calls{method="FetchJWTBundles"}`); v != "1" {
		t.Errorf("streams of a JWTSource: %s", v)
	}
}

// updates collects what a watch is told.
// TestWorkloadAPIRevocations: the lists of what is revoked come along, in DER, and
// again when they change.
func TestWorkloadAPIRevocations(t *testing.T) {
	t.Parallel()
	r, _, ctx := workloadRig(t, time.Hour)
	c := workload.NewSpiffeWorkloadAPIClient(r.dial(t))
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	own, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	bundles, err := c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want ...[]byte) {
		t.Helper()
		a, err := own.Recv()
		if err != nil {
			t.Fatal(err)
		}
		b, err := bundles.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(a.GetCrl(), want, bytes.Equal) || !slices.EqualFunc(b.GetCrl(), want, bytes.Equal) {
			t.Errorf("lists %x and %x, want %x", a.GetCrl(), b.GetCrl(), want)
		}
	}
	next()
	list := crlOf(t, r.root, 5)
	r.ca.feed.list.Set(&capb.RevocationList{Sequence: 5, Crls: [][]byte{list}})
	next(list)
}

type updates struct{ contexts chan *workloadapi.X509Context }

func (u updates) OnX509ContextUpdate(c *workloadapi.X509Context) { u.contexts <- c }
func (updates) OnX509ContextWatchError(error)                    {}

// TestWorkloadAPIPushes: renewed certificates and changed roots come by
// themselves, each with a key of its own.
func TestWorkloadAPIPushes(t *testing.T) {
	t.Parallel()
	r, c, ctx := workloadRig(t, 10*time.Second)
	got := updates{make(chan *workloadapi.X509Context, 100)}
	go func() { _ = c.WatchX509Context(ctx, got) }()
	next := func() *workloadapi.X509Context {
		t.Helper()
		select {
		case u := <-got.contexts:
			return u
		case <-ctx.Done():
			t.Fatal("nothing was pushed")
			return nil
		}
	}
	first := next().DefaultSVID()
	renewed := next().DefaultSVID()
	if renewed.Certificates[0].SerialNumber.Cmp(first.Certificates[0].SerialNumber) == 0 || renewed.ID != workloadID {
		t.Error("the same certificate was pushed again")
	}
	if left := time.Until(first.Certificates[0].NotAfter); left <= 0 {
		t.Errorf("the next certificate came %s too late", -left)
	}
	second := pkitest.NewRoot(t, domain)
	r.ca.bundle.Set([][]byte{r.root.Cert.Raw, second.Cert.Raw})
	proctest.Until(t, bound, "the new root comes", func() bool {
		b, ok := next().Bundles.Get(domainID)
		return ok && b.HasX509Authority(second.Cert) && b.HasX509Authority(r.root.Cert)
	})
}

// TestTokensOutliveTheAuthority: while it is away, tokens that are there are handed
// out and validated, and only new ones are missing.
func TestTokensOutliveTheAuthority(t *testing.T) {
	t.Parallel()
	r, c, ctx := workloadRig(t, time.Hour)
	token, err := c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a"})
	if err != nil {
		t.Fatal(err)
	}
	r.ca.stop()
	if again, err := c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a"}); err != nil || again.Marshal() != token.Marshal() {
		t.Errorf("%v", err)
	}
	if _, err := c.ValidateJWTSVID(ctx, token.Marshal(), "a"); err != nil {
		t.Error(err)
	}
	if _, err := c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "b"}); status.Code(err) != codes.Unavailable {
		t.Errorf("a token that is not there: %v", err)
	}
	r.ca.start(t)
	proctest.Eventually(t, bound, func() error {
		_, err := c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "b"})
		return err
	})
}

// TestWorkloadAPIFederated: identities of another trust domain are verified by its
// own bundle and by no other, and the bundle comes and goes by itself.
func TestWorkloadAPIFederated(t *testing.T) {
	t.Parallel()
	r, c, ctx := workloadRig(t, time.Hour)
	otherID := spiffeid.RequireTrustDomainFromString("other.example")
	root, jwt := pkitest.NewRoot(t, "other.example"), newFakeJWT(t, time.Hour)
	jwks, _ := jwt.jwks.Get()
	token, err := jwt.sign("spiffe://other.example/x", []string{"a"})
	if err != nil {
		t.Fatal(err)
	}
	crossed, err := r.ca.jwt.sign("spiffe://other.example/x", []string{"a"})
	if err != nil {
		t.Fatal(err)
	}
	backwards, err := jwt.sign(spiffeID, []string{"a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ValidateJWTSVID(ctx, token.Compact, "a"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a trust domain that nobody knows: %v", err)
	}
	other := &capb.FederatedBundle{TrustDomain: "other.example", Roots: [][]byte{root.Cert.Raw}, Jwks: jwks}
	impostor := &capb.FederatedBundle{TrustDomain: domain, Roots: [][]byte{root.Cert.Raw}, Jwks: jwks}
	broken := &capb.FederatedBundle{TrustDomain: "third.example", Roots: [][]byte{{1}}, Jwks: jwks}
	r.ca.others.known.Set(&capb.FederatedBundles{Bundles: []*capb.FederatedBundle{impostor, broken, other}})
	proctest.Eventually(t, bound, func() error {
		_, err := c.ValidateJWTSVID(ctx, token.Compact, "a")
		return err
	})
	for name, tok := range map[string]string{"of the other domain by this one's key": crossed.Compact, "of this domain by the other's key": backwards.Compact} {
		if _, err := c.ValidateJWTSVID(ctx, tok, "a"); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a token %s: %v", name, err)
		}
	}
	own, err := c.FetchX509Context(ctx)
	if err != nil {
		t.Fatal(err)
	}
	bundles, err := c.FetchX509Bundles(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for what, set := range map[string]interface {
		Get(spiffeid.TrustDomain) (*x509bundle.Bundle, bool)
		Len() int
	}{"of FetchX509SVID": own.Bundles, "of FetchX509Bundles": bundles} {
		mine, _ := set.Get(domainID)
		theirs, ok := set.Get(otherID)
		if !ok || set.Len() != 2 || !theirs.HasX509Authority(root.Cert) || mine.HasX509Authority(root.Cert) {
			t.Errorf("the bundles %s are others", what)
		}
	}
	keys, err := c.FetchJWTBundles(ctx)
	if b, ok := keys.Get(otherID); err != nil || !ok || keys.Len() != 2 || len(b.JWTAuthorities()) != 1 {
		t.Errorf("keys %v, %v", keys, err)
	}
	r.ca.others.known.Set(&capb.FederatedBundles{})
	proctest.Until(t, bound, "the other domain is not accepted any more", func() bool {
		_, err := c.ValidateJWTSVID(ctx, token.Compact, "a")
		return status.Code(err) == codes.InvalidArgument
	})
}

// everyMethod calls each of the five methods once.
func everyMethod(ctx context.Context, conn *grpc.ClientConn) map[string]error {
	c := workload.NewSpiffeWorkloadAPIClient(conn)
	out := map[string]error{}
	_, out["FetchJWTSVID"] = c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
	_, out["ValidateJWTSVID"] = c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: "x"})
	first := func(method string, recv func() error, err error) {
		if err == nil {
			err = recv()
		}
		out[method] = err
	}
	x, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	first("FetchX509SVID", func() error { _, err := x.Recv(); return err }, err)
	xb, err := c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
	first("FetchX509Bundles", func() error { _, err := xb.Recv(); return err }, err)
	jb, err := c.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	first("FetchJWTBundles", func() error { _, err := jb.Recv(); return err }, err)
	return out
}

func withHeader(ctx context.Context, value string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", value)
}

// TestWorkloadAPIWithoutHeader: no method answers a call without the header that
// the specification asks for, even of a workload.
func TestWorkloadAPIWithoutHeader(t *testing.T) {
	t.Parallel()
	r, _, ctx := workloadRig(t, time.Hour)
	conn := r.dial(t)
	for name, ctx := range map[string]context.Context{
		"without": ctx, "false": withHeader(ctx, "false"), "empty": withHeader(ctx, ""), "twice": withHeader(withHeader(ctx, "true"), "true"),
	} {
		for method, err := range everyMethod(ctx, conn) {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s: %s: %v", name, method, err)
			}
		}
	}
	if n := r.ca.count(spiffeID); n != 0 {
		t.Errorf("%d certificates were asked for", n)
	}
}

// TestWorkloadAPIForStrangers: who is no workload gets nothing, not even bundles,
// and nothing is asked of the authority on his behalf.
func TestWorkloadAPIForStrangers(t *testing.T) {
	t.Parallel()
	r := newRig(t, time.Hour)
	r.start(t)
	r.connected(t)
	for method, err := range everyMethod(withHeader(t.Context(), "true"), r.dial(t)) {
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", method, err)
		}
	}
	if n := r.ca.count(spiffeID) + r.ca.jwt.count(); n != 0 {
		t.Errorf("%d identities were asked for", n)
	}
	// As soon as its process is registered it is a workload.
	r.register(t, os.Getpid())
	for method, err := range everyMethod(withHeader(t.Context(), "true"), r.dial(t)) {
		if method != "ValidateJWTSVID" && err != nil {
			t.Errorf("%s after the registration: %v", method, err)
		}
	}
}

// TestMaliciousWorkload: what a workload asks for beyond its own.
func TestMaliciousWorkload(t *testing.T) {
	t.Parallel()
	r, c, ctx := workloadRig(t, time.Hour)
	raw := workload.NewSpiffeWorkloadAPIClient(r.dial(t))
	ctx = withHeader(ctx, "true")
	one := []string{"a"}
	for name, tc := range map[string]struct {
		req  *workload.JWTSVIDRequest
		want codes.Code
	}{
		"another workload's":   {&workload.JWTSVIDRequest{Audience: one, SpiffeId: "spiffe://cluster.local/ns/default/sa/admin"}, codes.PermissionDenied},
		"its own node's":       {&workload.JWTSVIDRequest{Audience: one, SpiffeId: "spiffe://cluster.local/writ/node/" + nodeName}, codes.PermissionDenied},
		"in another domain":    {&workload.JWTSVIDRequest{Audience: one, SpiffeId: "spiffe://example.org/ns/default/sa/web"}, codes.PermissionDenied},
		"a part of its own":    {&workload.JWTSVIDRequest{Audience: one, SpiffeId: spiffeID[:len(spiffeID)-1]}, codes.PermissionDenied},
		"no SPIFFE ID":         {&workload.JWTSVIDRequest{Audience: one, SpiffeId: "web"}, codes.InvalidArgument},
		"for nobody":           {&workload.JWTSVIDRequest{}, codes.InvalidArgument},
		"for an empty name":    {&workload.JWTSVIDRequest{Audience: []string{"a", ""}}, codes.InvalidArgument},
		"for a huge name":      {&workload.JWTSVIDRequest{Audience: []string{strings.Repeat("a", 1<<20)}}, codes.InvalidArgument},
		"for a thousand names": {&workload.JWTSVIDRequest{Audience: strings.Split(strings.Repeat("a,", 1000)+"a", ",")}, codes.InvalidArgument},
	} {
		if _, err := raw.FetchJWTSVID(ctx, tc.req); status.Code(err) != tc.want {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
	if n := r.ca.jwt.count(); n != 0 {
		t.Errorf("%d tokens were signed", n)
	}
	good, err := r.ca.jwt.sign("spiffe://cluster.local/ns/default/sa/admin", one)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := r.ca.jwt.sign("spiffe://example.org/ns/default/sa/admin", one)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := newFakeJWT(t, time.Hour).sign("spiffe://cluster.local/ns/default/sa/admin", one)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good.Compact, ".")
	if _, err := c.ValidateJWTSVID(ctx, good.Compact, "a"); err != nil {
		t.Fatal(err)
	}
	for name, req := range map[string]*workload.ValidateJWTSVIDRequest{
		"for somebody else":     {Audience: "b", Svid: good.Compact},
		"a part of the name":    {Audience: "", Svid: good.Compact},
		"of a foreign domain":   {Audience: "a", Svid: foreign.Compact},
		"of a key of his own":   {Audience: "a", Svid: forged.Compact},
		"without signature":     {Audience: "a", Svid: parts[0] + "." + parts[1] + "."},
		"algorithm none":        {Audience: "a", Svid: "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0." + parts[1] + "."},
		"other claims":          {Audience: "a", Svid: parts[0] + "." + strings.Split(forged.Compact, ".")[1][1:] + "." + parts[2]},
		"nothing":               {Audience: "a"},
		"too large":             {Audience: "a", Svid: strings.Repeat("a", 1<<20)},
		"an audience too large": {Audience: strings.Repeat("a", 1<<20), Svid: good.Compact},
	} {
		if v, err := raw.ValidateJWTSVID(ctx, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	for _, call := range []func() error{
		func() error {
			s, err := raw.FetchWITSVID(ctx, &workload.WITSVIDRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		func() error {
			s, err := raw.FetchWITBundles(ctx, &workload.WITBundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.Unimplemented {
			t.Errorf("WIT-SVIDs: %v", err)
		}
	}
}

// TestThousandStreams: a workload gets no more than its share of streams, the
// agent goes on, and what is given back can be had again.
func TestThousandStreams(t *testing.T) {
	t.Parallel()
	r, c, ctx := workloadRig(t, time.Hour)
	streams, stop := context.WithCancel(withHeader(ctx, "true"))
	defer stop()
	open := func() error {
		s, err := workload.NewSpiffeWorkloadAPIClient(r.dial(t)).FetchX509SVID(streams, &workload.X509SVIDRequest{})
		if err != nil {
			return err
		}
		_, err = s.Recv()
		return err
	}
	errs := make(chan error, 1000)
	for range cap(errs) {
		go func() { errs <- open() }()
	}
	count := map[codes.Code]int{}
	for range cap(errs) {
		count[status.Code(<-errs)]++
	}
	if count[codes.OK] != 256 || count[codes.ResourceExhausted] != cap(errs)-256 {
		t.Errorf("got %v", count)
	}
	r.status(t, "the agent goes on", func(st *nodeagentpb.GetStatusResponse) bool { return st.GetNode() == nodeName })
	stop()
	proctest.Eventually(t, bound, func() error {
		_, err := c.FetchX509SVID(ctx)
		return err
	})
	if n := r.ca.count(spiffeID); n > 3 {
		t.Errorf("%d certificates for one workload", n)
	}
}

// runPeer is the first argument that makes the test binary be a TLS server with an
// identity from the Workload API, whose socket is the second.
const runPeer = "peer"

// peer serves one line to who has an identity of the trust domain, and prints its
// address.
func peer(socket string) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(socket)))
	if err != nil {
		fail(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeMemberOf(domainID)))
	if err != nil {
		fail(err)
	}
	fmt.Println("listening on", l.Addr())
	for {
		conn, err := l.Accept()
		if err != nil {
			fail(err)
		}
		go func() {
			defer func() { _ = conn.Close() }()
			_, _ = io.WriteString(conn, "hello\n")
		}()
	}
}

// TestMutualTLSByWorkloadAPI: two processes that know the socket and nothing else
// authenticate each other.
func TestMutualTLSByWorkloadAPI(t *testing.T) {
	t.Parallel()
	r, c, ctx := workloadRig(t, time.Hour)
	server := proctest.Start(t, os.Args[0], runPeer, "unix://"+r.socket())
	var addr string
	proctest.Until(t, bound, "the server listens", func() bool {
		_, rest, ok := strings.Cut(server.Output.String(), "listening on ")
		addr, _, _ = strings.Cut(rest, "\n")
		return ok && strings.Contains(rest, "\n")
	})
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClient(c))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	hello := func(config *tls.Config) (string, error) {
		conn, err := (&tls.Dialer{NetDialer: new(net.Dialer), Config: config}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return "", err
		}
		defer func() { _ = conn.Close() }()
		data, err := io.ReadAll(conn)
		return string(data), err
	}
	if got, err := hello(tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(workloadID))); got != "hello\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := hello(tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(spiffeid.RequireFromPath(domainID, "/other")))); err == nil {
		t.Error("the server is taken for another")
	}
	if got, err := hello(tlsconfig.TLSClientConfig(source, tlsconfig.AuthorizeAny())); err == nil {
		t.Errorf("a client without a certificate: %q", got)
	}
}
