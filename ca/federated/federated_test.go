package federated_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/federated"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
)

const bound = 20 * time.Second

var td = spiffeid.RequireTrustDomainFromString("other.example")

// endpoint is the bundle endpoint of another trust domain.
type endpoint struct {
	t      *testing.T
	server *httptest.Server
	root   *pkitest.Root
	// serve, if set, answers in place of the bundle.
	serve atomic.Pointer[http.HandlerFunc]
	body  atomic.Pointer[[]byte]
}

// bundle makes a bundle of roots with a number.
func bundle(t testing.TB, sequence uint64, roots ...*pkitest.Root) []byte {
	t.Helper()
	b := spiffebundle.New(td)
	for _, r := range roots {
		b.AddX509Authority(r.Cert)
	}
	b.SetSequenceNumber(sequence)
	b.SetRefreshHint(time.Second)
	data, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// newEndpoint starts one that has the SPIFFE ID of id.
func newEndpoint(t *testing.T, id string) *endpoint {
	t.Helper()
	e := &endpoint{t: t, root: pkitest.NewRoot(t, td.Name())}
	e.set(bundle(t, 5, e.root))
	e.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := e.serve.Load(); f != nil {
			(*f)(w, r)
			return
		}
		_, _ = w.Write(*e.body.Load())
	}))
	e.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	e.server.TLS = &tls.Config{Certificates: []tls.Certificate{e.root.Pair(t, pkitest.Leaf(id, time.Hour))}, MinVersion: tls.VersionTLS12}
	e.server.StartTLS()
	t.Cleanup(e.server.Close)
	return e
}

func (e *endpoint) set(data []byte) { e.body.Store(&data) }

// file writes a file.
func file(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// follow runs Bundles until the test ends or stop is called.
func follow(t *testing.T, dir string, d federated.Domain) (*federated.Bundles, func()) {
	t.Helper()
	b, err := federated.Open(dir, []federated.Domain{d}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx) }()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return b, stop
}

// sequence of the one bundle that is known; 0 for none.
func sequence(b *federated.Bundles) uint64 {
	all, _ := b.Current()
	if len(all) != 1 {
		return 0
	}
	n, _ := all[0].SequenceNumber()
	return n
}

func waitFor(t *testing.T, b *federated.Bundles, want uint64) {
	t.Helper()
	proctest.Until(t, bound, "the bundle is there", func() bool { return sequence(b) == want })
}

const id = "spiffe://other.example/bundle"

func (e *endpoint) domain(begin string) federated.Domain {
	return federated.Domain{TrustDomain: td.Name(), URL: e.server.URL, Profile: "https_spiffe", EndpointID: id, BundleFile: begin}
}

// TestLastGoodStays: the newest bundle that was good is in force, also after a
// restart and with an endpoint that is away or wrong.
func TestLastGoodStays(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t, id)
	dir := filepath.Join(t.TempDir(), "federated")
	begin := file(t, bundle(t, 1, e.root))
	b, stop := follow(t, dir, e.domain(begin))
	waitFor(t, b, 5)
	stop()
	e.server.Close()
	b, stop = follow(t, dir, e.domain(begin))
	if n := sequence(b); n != 5 {
		t.Errorf("after a restart with the endpoint away: number %d", n)
	}
	stop()
	// Damage on disk is no reason not to start: there is the file to begin with.
	kept, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("%v, %v", kept, err)
	}
	if err := os.WriteFile(kept[0], []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, _ := follow(t, dir, e.domain(begin)); sequence(b) != 1 {
		t.Errorf("number %d", sequence(b))
	}
	// An operator's newer file counts.
	if err := os.WriteFile(kept[0], bundle(t, 5, e.root), 0o600); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(begin, later, later); err != nil {
		t.Fatal(err)
	}
	if b, _ := follow(t, dir, e.domain(begin)); sequence(b) != 1 {
		t.Errorf("number %d", sequence(b))
	}
}

// TestBadAnswersAreNotUsed: what a broken or malicious endpoint says.
func TestBadAnswersAreNotUsed(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t, id)
	other := pkitest.NewRoot(t, "other.example")
	leaf, _ := other.Issue(t, pkitest.Leaf("spiffe://other.example/x", time.Hour))
	block, _ := pem.Decode(leaf)
	evil := func(f http.HandlerFunc) *http.HandlerFunc { return &f }
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bundle(t, 9, e.root)) }))
	defer target.Close()
	for name, answer := range map[string]*http.HandlerFunc{
		"error": evil(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write(bundle(t, 9, e.root))
		}),
		"redirect": evil(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target.URL, http.StatusFound) }),
		"no JSON":  evil(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }),
		"no roots": evil(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bundle(t, 9)) }),
		"too large": evil(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"keys":[]`+strings.Repeat(" ", 2<<20)+`}`)
		}),
		"older":    evil(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bundle(t, 4, e.root, other)) }),
		"too many": evil(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(manyRoots(t)) }),
		"a leaf":   evil(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(leafAsRoot(t, block.Bytes)) }),
	} {
		t.Run(name, func(t *testing.T) {
			e.serve.Store(nil)
			asked := make(chan struct{}, 100)
			dir := filepath.Join(t.TempDir(), "federated")
			begin := file(t, bundle(t, 1, e.root))
			b, stop := follow(t, dir, e.domain(begin))
			waitFor(t, b, 5)
			stop()
			h := func(w http.ResponseWriter, r *http.Request) { (*answer)(w, r); asked <- struct{}{} }
			hf := http.HandlerFunc(h)
			e.serve.Store(&hf)
			b, _ = follow(t, dir, e.domain(begin))
			for range 2 { // the second request comes after the first answer was judged
				select {
				case <-asked:
				case <-time.After(bound):
					t.Fatal("nobody asked")
				}
			}
			if n := sequence(b); n != 5 {
				t.Errorf("number %d is in force", n)
			}
		})
	}
}

func manyRoots(t *testing.T) []byte {
	t.Helper()
	var roots []*pkitest.Root
	for range 65 {
		roots = append(roots, pkitest.NewRoot(t, td.Name()))
	}
	return bundle(t, 9, roots...)
}

func leafAsRoot(t *testing.T, der []byte) []byte {
	t.Helper()
	b := spiffebundle.New(td)
	b.SetSequenceNumber(9)
	cert := pkitest.NewRoot(t, td.Name()).Cert
	c := *cert
	c.Raw, c.IsCA = der, false
	b.AddX509Authority(&c)
	data, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestEndpointIsAuthenticated: an endpoint with another identity, or under other
// roots, is not asked.
func TestEndpointIsAuthenticated(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t, "spiffe://other.example/somebody")
	b, _ := follow(t, t.TempDir(), e.domain(file(t, bundle(t, 1, e.root))))
	impostor := newEndpoint(t, id)
	c, _ := follow(t, t.TempDir(), impostor.domain(file(t, bundle(t, 1, e.root))))
	web, _ := follow(t, t.TempDir(), federated.Domain{TrustDomain: td.Name(), URL: e.server.URL, Profile: "https_web"})
	good := newEndpoint(t, id)
	d, _ := follow(t, t.TempDir(), good.domain(file(t, bundle(t, 1, good.root))))
	waitFor(t, d, 5) // the others have had the time by then
	if sequence(b) != 1 || sequence(c) != 1 || sequence(web) != 0 {
		t.Errorf("numbers %d, %d and %d", sequence(b), sequence(c), sequence(web))
	}
}

// TestWebEndpoint: with roots from a file.
func TestWebEndpoint(t *testing.T) {
	t.Parallel()
	e := newEndpoint(t, id)
	root := pkitest.NewRoot(t, "")
	leaf := pkitest.Leaf("", time.Hour)
	leaf.DNSNames = []string{"example.com"}
	e.server.TLS.Certificates = []tls.Certificate{root.Pair(t, leaf)}
	b, _ := follow(t, t.TempDir(), federated.Domain{
		TrustDomain: td.Name(), URL: strings.Replace(e.server.URL, "127.0.0.1", "localhost", 1), Profile: "https_web", CAFile: file(t, root.PEM()),
	})
	if n := sequence(b); n != 0 {
		t.Errorf("number %d for a name that the certificate does not have", n)
	}
	if _, err := federated.Open(t.TempDir(), []federated.Domain{{TrustDomain: td.Name(), URL: e.server.URL, Profile: "https_web", CAFile: file(t, []byte("x"))}}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("roots that are none")
	}
}

func TestValidate(t *testing.T) {
	good := federated.Domain{TrustDomain: "other.example", URL: "https://other.example/bundle", Profile: "https_spiffe", EndpointID: id, BundleFile: "b.json"}
	for name, tc := range map[string]struct {
		change func(*federated.Domain)
		want   string
	}{
		"good":             {func(*federated.Domain) {}, ""},
		"web":              {func(d *federated.Domain) { d.Profile, d.EndpointID = "https_web", "" }, ""},
		"itself":           {func(d *federated.Domain) { d.TrustDomain = "own.example" }, "is this one"},
		"with scheme":      {func(d *federated.Domain) { d.TrustDomain = "spiffe://other.example" }, "without scheme"},
		"no trust domain":  {func(d *federated.Domain) { d.TrustDomain = "A B" }, "trust_domain"},
		"plain text":       {func(d *federated.Domain) { d.URL = "http://other.example" }, "want https://"},
		"with a password":  {func(d *federated.Domain) { d.URL = "https://u:p@other.example" }, "want https://"},
		"no profile":       {func(d *federated.Domain) { d.Profile = "" }, "want https_web or https_spiffe"},
		"nobody":           {func(d *federated.Domain) { d.EndpointID = "" }, "endpoint_id"},
		"no begin":         {func(d *federated.Domain) { d.BundleFile = "" }, "needs bundle_file"},
		"two proofs":       {func(d *federated.Domain) { d.CAFile = "x" }, "ca_file is for https_web"},
		"an ID on the web": {func(d *federated.Domain) { d.Profile = "https_web" }, "endpoint_id is for https_spiffe"},
	} {
		d := good
		tc.change(&d)
		if err := federated.Validate([]federated.Domain{d}, "own.example"); tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if err := federated.Validate([]federated.Domain{good, good}, "own.example"); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the same twice: %v", err)
	}
}

// FuzzKeptBundle: a file that is kept, or comes from an endpoint, is used or not,
// and nothing else happens.
func FuzzKeptBundle(f *testing.F) {
	f.Add(bundle(f, 1, pkitest.NewRoot(f, td.Name())))
	f.Add([]byte(`{"keys":[{"use":"x509-svid","kty":"EC"}],"spiffe_sequence":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		begin := filepath.Join(t.TempDir(), "b")
		if err := os.WriteFile(begin, data, 0o600); err != nil {
			t.Fatal(err)
		}
		d := federated.Domain{TrustDomain: td.Name(), URL: "https://other.example", Profile: "https_spiffe", EndpointID: id, BundleFile: begin}
		b, err := federated.Open(t.TempDir(), []federated.Domain{d}, slog.New(slog.DiscardHandler))
		if err != nil {
			return
		}
		if all, _ := b.Current(); len(all) != 1 || len(all[0].X509Authorities()) == 0 {
			t.Error("a bundle without roots is in force")
		}
	})
}
