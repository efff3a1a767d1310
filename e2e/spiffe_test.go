package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
)

// spiffeProgram is the first argument that makes the test binary be a program of a
// mesh: it knows $SPIFFE_ENDPOINT_SOCKET and asks there what it is told to.
const spiffeProgram = "spiffe-program"

// spiffeAnswer is what the program says.
type spiffeAnswer struct {
	ID, Serial, Token, Socket, Address, Said string
	Keys                                     int
	Code                                     codes.Code
	Err                                      string
}

// runSpiffeProgram serves HTTP on $PORT and mutual TLS on a port of its own.
func runSpiffeProgram() error {
	ctx := context.Background()
	c, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	x509, err := workloadapi.NewX509Source(ctx, workloadapi.WithClient(c))
	if err != nil {
		return err
	}
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	mutual, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(x509, x509, tlsconfig.AuthorizeMemberOf(td)))
	if err != nil {
		return err
	}
	go greet(mutual)
	ask := func(r *http.Request) (a spiffeAnswer, err error) {
		ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
		defer cancel()
		q := r.URL.Query()
		switch r.URL.Path {
		case "/self":
			var svid *x509svid.SVID
			if svid, err = x509.GetX509SVID(); err == nil {
				a.ID, a.Serial = svid.ID.String(), svid.Certificates[0].SerialNumber.Text(16)
			}
			a.Address, a.Socket = mutual.Addr().String(), os.Getenv("SPIFFE_ENDPOINT_SOCKET")
		case "/bundles":
			bundles, ferr := c.FetchX509Bundles(ctx)
			if ferr != nil {
				return a, ferr
			}
			keys, ferr := c.FetchJWTBundles(ctx)
			if ferr != nil {
				return a, ferr
			}
			b, ok := keys.Get(td)
			if _, has := bundles.Get(td); !ok || !has {
				return a, fmt.Errorf("no bundle of %s", td)
			}
			a.Keys = len(b.JWTAuthorities())
		case "/token":
			params := jwtsvid.Params{Audience: q.Get("aud")}
			if id := q.Get("id"); id != "" {
				params.Subject = spiffeid.RequireFromString(id)
			}
			var svid *jwtsvid.SVID
			if svid, err = c.FetchJWTSVID(ctx, params); err == nil {
				a.ID, a.Token = svid.ID.String(), svid.Marshal()
			}
		case "/validate":
			var svid *jwtsvid.SVID
			if svid, err = c.ValidateJWTSVID(ctx, q.Get("token"), q.Get("aud")); err == nil {
				a.ID = svid.ID.String()
			}
		case "/call":
			a.Said, err = call(ctx, q.Get("address"), tlsconfig.MTLSClientConfig(x509, x509, tlsconfig.AuthorizeID(spiffeid.RequireFromString(q.Get("id")))))
		}
		return a, err
	}
	serve := func(w http.ResponseWriter, r *http.Request) {
		a, err := ask(r)
		if err != nil {
			a.Code, a.Err = status.Code(err), err.Error()
		}
		_ = json.NewEncoder(w).Encode(a)
	}
	server := &http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), Handler: http.HandlerFunc(serve), ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}

// greet tells each client of a TLS listener who it is.
func greet(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			t := conn.(*tls.Conn)
			if t.Handshake() != nil {
				return
			}
			if id, err := x509svid.IDFromCert(t.ConnectionState().PeerCertificates[0]); err == nil {
				_, _ = io.WriteString(conn, "hello "+id.String())
			}
		}()
	}
}

func call(ctx context.Context, addr string, config *tls.Config) (string, error) {
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	data, err := io.ReadAll(conn)
	return string(data), err
}

// TestWorkloadAPI: programs of a whole mesh get identities from the socket that
// they are given, with go-spiffe's client: all five methods, mutual TLS between
// two of them, and a certificate that is renewed under them. Who is no program of
// the mesh gets nothing.
func TestWorkloadAPI(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := func(name string) string {
		return fmt.Sprintf(`kind: LocalWorkload
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  serviceAccount: %[1]s
  command: [%[2]q, %[3]s]
  ports: [{name: http, port: 8000}]
`, name, self, spiffeProgram)
	}
	m := up(t, writeFiles(t, map[string]string{"a.yaml": program("alpha"), "b.yaml": program("beta")}), "--certificate-life", "20s")
	tell := func(name, path string, args ...string) spiffeAnswer {
		t.Helper()
		q := url.Values{}
		for i := 0; i < len(args); i += 2 {
			q.Set(args[i], args[i+1])
		}
		got := m.get(map[string]string{"alpha": "beta-1", "beta": "alpha-1"}[name], "http://"+name+":8000/"+path+"?"+q.Encode())
		var a spiffeAnswer
		if err := json.Unmarshal([]byte(got.body), &a); err != nil || got.status != http.StatusOK {
			t.Fatalf("%s of %s: %s", path, name, got)
		}
		return a
	}
	alphaID, betaID := "spiffe://cluster.local/ns/default/sa/alpha", "spiffe://cluster.local/ns/default/sa/beta"
	alpha, beta := tell("alpha", "self"), tell("beta", "self")
	if alpha.ID != alphaID || beta.ID != betaID || !strings.HasPrefix(alpha.Socket, "unix:///") {
		t.Fatalf("alpha is %+v, beta is %+v", alpha, beta)
	}
	for name := range map[string]bool{"alpha": true, "beta": true} {
		if a := tell(name, "bundles"); a.Err != "" || a.Keys == 0 {
			t.Errorf("bundles of %s: %+v", name, a)
		}
	}
	token := tell("alpha", "token", "aud", betaID)
	if token.ID != alphaID || token.Err != "" {
		t.Fatalf("%+v", token)
	}
	if a := tell("beta", "validate", "aud", betaID, "token", token.Token); a.ID != alphaID {
		t.Errorf("%+v", a)
	}
	if a := tell("beta", "validate", "aud", alphaID, "token", token.Token); a.Code != codes.InvalidArgument {
		t.Errorf("a token for somebody else: %+v", a)
	}
	if a := tell("alpha", "token", "aud", "x", "id", betaID); a.Code != codes.PermissionDenied {
		t.Errorf("a token of somebody else: %+v", a)
	}
	if a := tell("alpha", "call", "address", beta.Address, "id", betaID); a.Said != "hello "+alphaID {
		t.Errorf("%+v", a)
	}
	if a := tell("alpha", "call", "address", beta.Address, "id", alphaID); a.Err == "" {
		t.Errorf("beta is taken for alpha: %+v", a)
	}
	askAsStranger(t, alpha.Socket)
	proctest.Until(t, 40*time.Second, "the certificate is renewed", func() bool { return tell("alpha", "self").Serial != alpha.Serial })
	if a := tell("beta", "call", "address", alpha.Address, "id", alphaID); a.Said != "hello "+betaID {
		t.Errorf("after the renewal: %+v", a)
	}
}

// askAsStranger calls each method as this process, which is no program of the
// mesh, and as nobody who follows the specification.
func askAsStranger(t *testing.T, socket string) {
	t.Helper()
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	c := workloadpb.NewSpiffeWorkloadAPIClient(conn)
	methods := map[string]func(context.Context) error{
		"FetchJWTSVID": func(ctx context.Context) error {
			_, err := c.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{Audience: []string{"a"}})
			return err
		},
		"ValidateJWTSVID": func(ctx context.Context) error {
			_, err := c.ValidateJWTSVID(ctx, &workloadpb.ValidateJWTSVIDRequest{Audience: "a", Svid: "x"})
			return err
		},
		"FetchX509SVID": func(ctx context.Context) error {
			s, err := c.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"FetchX509Bundles": func(ctx context.Context) error {
			s, err := c.FetchX509Bundles(ctx, &workloadpb.X509BundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"FetchJWTBundles": func(ctx context.Context) error {
			s, err := c.FetchJWTBundles(ctx, &workloadpb.JWTBundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for name, method := range methods {
		wg.Go(func() {
			if err := method(ctx); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s without the header: %v", name, err)
			}
			if err := method(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s for a stranger: %v", name, err)
			}
		})
	}
	wg.Wait()
}
