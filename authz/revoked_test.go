package authz

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/internal/revoked"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// tokenFeed is a fake of pilot's feed: it sends what it is told to, and ends the stream
// at a nil message.
type tokenFeed struct {
	pilotpb.UnimplementedTokenRevocationFeedServer
	send chan *pilotpb.WatchRevokedTokensResponse
}

func (f *tokenFeed) WatchRevokedTokens(_ *pilotpb.WatchRevokedTokensRequest, s grpc.ServerStreamingServer[pilotpb.WatchRevokedTokensResponse]) error {
	for {
		select {
		case m := <-f.send:
			if m == nil {
				return nil
			}
			if err := s.Send(m); err != nil {
				return err
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

// followTokens makes m follow a feed in the bubble of a test.
func followTokens(t *testing.T, m *mesh) *tokenFeed {
	t.Helper()
	f := &tokenFeed{send: make(chan *pilotpb.WatchRevokedTokensResponse)}
	lis, s := bufconn.Listen(1<<16), grpc.NewServer()
	pilotpb.RegisterTokenRevocationFeedServer(s, f)
	go func() { _ = s.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///pilot", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	m.follows()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.revoked.follow(ctx, conn) }()
	t.Cleanup(func() { cancel(); <-done; _ = conn.Close(); s.Stop() })
	return f
}

// follows makes a server one that is told which tokens are revoked, and has not been.
func (m *mesh) follows() {
	m.revoked = &revokedTokens{metrics: m.metrics, log: m.server.log}
	m.tokens.revoked = m.revoked
}

func put(keys ...revoked.Key) (out []*pilotpb.RevokedTokenEntry) {
	for _, k := range keys {
		out = append(out, &pilotpb.RevokedTokenEntry{Key: k[:]})
	}
	return out
}

// verified says that Envoy verified a token with these claims.
func verified(claims map[string]any) func(*authv3.AttributeContext) {
	s, err := structpb.NewStruct(map[string]any{jwtPayload: claims})
	if err != nil {
		panic(err)
	}
	return func(a *authv3.AttributeContext) {
		a.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{jwtFilter: s}}
	}
}

// onlyToken makes a check one that only asks about the token.
func onlyToken(a *authv3.AttributeContext) {
	a.ContextExtensions = map[string]string{tokensKey: "revoked"}
}

// TestRevokedTokens: closed until the list is known, then as pilot says, and so while
// pilot is away.
func TestRevokedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		f := followTokens(t, m)
		one, two := verified(map[string]any{"iss": "a", "jti": "1"}), verified(map[string]any{"iss": "a", "jti": "2"})
		expect := func(when string, oneBy, twoBy string) {
			t.Helper()
			synctest.Wait()
			for name, c := range map[string]struct {
				token func(*authv3.AttributeContext)
				by    string
			}{"one": {one, oneBy}, "two": {two, twoBy}} {
				r := m.check(t, "", c.token, onlyToken)
				if by := deniedBy(r); allowed(r) != (c.by == "") || by != c.by && c.by != "unknown" {
					t.Errorf("%s, token %s: allowed %v, denied by %q, want %q", when, name, allowed(r), by, c.by)
				}
			}
		}
		expect("before pilot said anything", "unknown", "unknown")
		f.send <- &pilotpb.WatchRevokedTokensResponse{Begin: true, Put: put(revoked.IDKey("a", "1"))}
		expect("in the middle of the list", "unknown", "unknown")
		f.send <- &pilotpb.WatchRevokedTokensResponse{Put: put(revoked.IDKey("b", "2")), Complete: true}
		const byID = "TokenRevocation jti"
		expect("with the list", byID, "")
		f.send <- &pilotpb.WatchRevokedTokensResponse{Put: put(revoked.IDKey("a", "2")), Complete: true}
		expect("after another revocation", byID, byID)
		f.send <- &pilotpb.WatchRevokedTokensResponse{Deleted: [][]byte{keyBytes(revoked.IDKey("a", "1"))}, Complete: true}
		expect("after one was taken back", "", byID)
		f.send <- nil
		expect("while pilot is away", "", byID)
		time.Sleep(2 * revokedMost) // fake time
		f.send <- &pilotpb.WatchRevokedTokensResponse{Begin: true, Put: put(revoked.IDKey("a", "1"))}
		expect("while pilot sends everything anew", "", byID)
		f.send <- &pilotpb.WatchRevokedTokensResponse{Complete: true}
		expect("when everything came anew", byID, "")
		f.send <- &pilotpb.WatchRevokedTokensResponse{Put: []*pilotpb.RevokedTokenEntry{{Key: []byte("short")}}}
		expect("after nonsense", byID, "")
		if got := sample(t, m.reg, "writ_authz_revoked_tokens"); got != 1 {
			t.Errorf("metric %v", got)
		}
	})
}

func keyBytes(k revoked.Key) []byte { return k[:] }

// TestRevokedTokensAndRego: no policy is asked about a request with a revoked token,
// and none believes it, whoever verified it.
func TestRevokedTokensAndRego(t *testing.T) {
	m := newMesh(t)
	m.follows()
	ours := newIssuerKeys(t)
	if err := m.policies.applyIssuers(t.Context(), map[string]*configpb.TokenIssuer{"default/r/0": {Issuer: "a", Jwks: ours.jwks}}); err != nil {
		t.Fatal(err)
	}
	m.apply(t, regoPolicy("default/any", "allow if input.jwt.verified"))
	own := func(claims jwt.MapClaims) func(*authv3.AttributeContext) {
		claims["exp"] = time.Now().Add(time.Hour).Unix()
		return withHeader("authorization", "Bearer "+ours.token(t, claims))
	}
	cases := map[string]struct {
		token   func(*authv3.AttributeContext)
		allowed bool
		by      string
	}{
		"verified by Envoy":                   {verified(map[string]any{"iss": "a", "jti": "1"}), false, "TokenRevocation jti"},
		"verified by Envoy, another":          {verified(map[string]any{"iss": "a", "jti": "2"}), true, ""},
		"an old session":                      {verified(map[string]any{"iss": "a", "sub": "bob", "iat": 999}), false, "TokenRevocation issued-before"},
		"a new session":                       {verified(map[string]any{"iss": "a", "sub": "bob", "iat": 1000.5}), true, ""},
		"a session since a text":              {verified(map[string]any{"iss": "a", "sub": "bob", "iat": "2000"}), false, "TokenRevocation issued-before"},
		"verified here":                       {own(jwt.MapClaims{"iss": "a", "jti": "1"}), false, "RegoPolicy default/any"},
		"verified here, another":              {own(jwt.MapClaims{"iss": "a", "jti": "2"}), true, ""},
		"verified here, an old session":       {own(jwt.MapClaims{"iss": "a", "sub": "bob", "iat": 999}), false, "RegoPolicy default/any"},
		"verified here, a name in other case": {own(jwt.MapClaims{"iss": "a", "JTI": "1", "jti": "2"}), true, ""},
	}
	r := m.check(t, "default/any", cases["verified here, another"].token)
	if reason := r.GetDynamicMetadata().GetFields()[metadataReason].GetStringValue(); allowed(r) {
		t.Errorf("a token is believed before it is known which are revoked: %q", reason)
	}
	table := new(revoked.Table)
	table.Put(revoked.Entry{Key: revoked.IDKey("a", "1")})
	table.Put(revoked.Entry{Key: revoked.SubjectKey("a", "bob"), Before: 1000})
	m.revoked.table.Store(table)
	for name, c := range cases {
		r := m.check(t, "default/any", c.token)
		if allowed(r) != c.allowed || deniedBy(r) != c.by {
			t.Errorf("%s: allowed %v, denied by %q", name, allowed(r), deniedBy(r))
		}
	}
	// A check that only asks about the token, and has none, is no request of Envoy's.
	if r := m.check(t, "", onlyToken); allowed(r) {
		t.Error("a check of no token is allowed")
	}
}

func TestRevokedTokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.follows()
		table := new(revoked.Table)
		table.Put(revoked.Entry{Key: revoked.IDKey("a", "1"), Until: revoked.Seconds(time.Now().Add(time.Minute))})
		m.revoked.table.Store(table)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = m.revoked.expire(ctx) }()
		time.Sleep(9 * time.Minute) // fake time
		if table.Len() != 1 {
			t.Error("a revocation was forgotten while verifiers may grant leeway")
		}
		time.Sleep(4 * time.Minute) // fake time
		synctest.Wait()
		if table.Len() != 0 {
			t.Error("a revocation of what has long expired stays")
		}
		cancel()
		<-done
	})
}
