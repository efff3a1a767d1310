package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/authz/bundletest"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/proctest"
)

const pluginName = "decider"

// policy says its revision twice: as a rule, and as data. A program in which they
// differ is of two revisions.
func policy(revision int) map[string]string {
	return map[string]string{
		".manifest":   fmt.Sprintf(`{"revision": "r%d", "roots": ["envoy", "settings"]}`, revision),
		"policy.rego": fmt.Sprintf("package envoy.authz\nallow := {\"allowed\": true, \"reason\": sprintf(\"%d %%d\", [data.settings.revision])}\n", revision),
		"data.json":   fmt.Sprintf(`{"settings": {"revision": %d}}`, revision),
	}
}

func contents(t testing.TB, b []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF { //nolint:errorlint // as package tar says
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(content)
	}
}

// signed makes a bundle with a signature by key.
func signed(t testing.TB, files map[string]string, key, keyID string) []byte {
	t.Helper()
	b, err := opabundle.NewReader(bytes.NewReader(bundletest.Tarball(t, files))).WithLazyLoadingMode(false).Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.GenerateSignature(opabundle.NewSigningConfig(key, "HS256", ""), keyID, true); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := opabundle.Write(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func local(t testing.TB, paths, bundles []string) *Local {
	t.Helper()
	l, err := ReadLocal(paths, bundles, false)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// bundleServer is a server of bundles with ETags and long polling.
type bundleServer struct {
	*httptest.Server
	mu      sync.Mutex
	content map[string][]byte
	changed chan struct{}
	// requests are the headers of requests by path, notModified counts answers 304.
	requests    map[string][]http.Header
	notModified int
	posts       map[string][][]byte
}

func newServer(t testing.TB) *bundleServer {
	s := &bundleServer{content: map[string][]byte{}, changed: make(chan struct{}), requests: map[string][]http.Header{}, posts: map[string][][]byte{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func (s *bundleServer) set(path string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content[path] = content
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *bundleServer) get(path string) ([]byte, string, chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.content[path]
	sum := sha256.Sum256(c)
	return c, `"` + hex.EncodeToString(sum[:8]) + `"`, s.changed
}

func (s *bundleServer) seen(path string) []http.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests[path])
}

func (s *bundleServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests[r.URL.Path] = append(s.requests[r.URL.Path], r.Header.Clone())
	s.mu.Unlock()
	if r.Method == http.MethodPost {
		s.post(r)
		return
	}
	content, etag, changed := s.get(r.URL.Path)
	wait, polls := longPoll(r.Header)
	if polls && r.Header.Get("If-None-Match") == etag {
		select {
		case <-changed:
		case <-r.Context().Done():
		case <-time.After(wait):
		}
		content, etag, _ = s.get(r.URL.Path)
	}
	w.Header().Set("ETag", etag)
	w.Header().Set("Content-Type", "application/vnd.openpolicyagent.bundles")
	switch {
	case content == nil:
		w.WriteHeader(http.StatusNotFound)
	case r.Header.Get("If-None-Match") == etag:
		s.mu.Lock()
		s.notModified++
		s.mu.Unlock()
		w.WriteHeader(http.StatusNotModified)
	default:
		_, _ = w.Write(content)
	}
}

func (s *bundleServer) post(r *http.Request) {
	var b bytes.Buffer
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return
		}
		_, _ = b.ReadFrom(z)
	} else {
		_, _ = b.ReadFrom(r.Body)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posts[r.URL.Path] = append(s.posts[r.URL.Path], b.Bytes())
}

// running is a manager in a test.
type running struct {
	*Manager
	mu      sync.Mutex
	reports map[string]Report
	state   error
}

func options(config string) Options {
	return Options{
		Config: []byte(config), Plugin: pluginName, ID: "test",
		Read:    func([]byte) (string, func(), error) { return "data.envoy.authz.allow", nil, nil },
		Rego:    rego.Options{Network: true, Undefined: true},
		Console: new(bytes.Buffer), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	}
}

// run runs a manager until the test ends.
func run(t testing.TB, o Options) *running {
	t.Helper()
	r := &running{reports: map[string]Report{}, state: fmt.Errorf("no state yet")}
	o.Report = func(all []Report) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, x := range all {
			r.reports[x.Name] = x
		}
	}
	var err error
	if r.Manager, err = NewManager(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := r.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	proctest.Background(t, func(ctx context.Context) error {
		return r.Run(ctx, func(err error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.state = err
		})
	})
	return r
}

func (r *running) report(name string) Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reports[name]
}

// ask asks what decides now, and gives the reason.
func (r *running) ask(t testing.TB) string {
	t.Helper()
	s := r.Current()
	if s == nil {
		return "nothing"
	}
	return askProgram(t, s.Program)
}

func askProgram(t testing.TB, p *rego.Program) string {
	t.Helper()
	in, err := rego.NewInput(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{}}, rego.InputOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Eval(context.Background(), in, time.Minute)
	if err != nil {
		return err.Error()
	}
	return d.Reason
}

// decides waits until that is the reason.
func (r *running) decides(t testing.TB, want string) {
	t.Helper()
	proctest.Eventually(t, 30*time.Second, func() error {
		if got := r.ask(t); got != want {
			r.mu.Lock()
			defer r.mu.Unlock()
			return fmt.Errorf("decides %q, want %q; report %+v", got, want, r.reports)
		}
		return nil
	})
}

// fails waits until a bundle is reported with an error that has this text.
func (r *running) fails(t testing.TB, name, want string) {
	t.Helper()
	proctest.Eventually(t, 30*time.Second, func() error {
		switch err := r.report(name).Err; {
		case err == nil:
			return errors.New("no error yet")
		case !strings.Contains(err.Error(), want):
			return fmt.Errorf("the report is not %q: %w", want, err)
		}
		return nil
	})
}

// ready waits until everything is in force.
func (r *running) ready(t testing.TB) {
	t.Helper()
	proctest.Eventually(t, 30*time.Second, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.state
	})
}
