package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/open-policy-agent/opa/v1/plugins/rest"

	"github.com/writ-mesh/writ/authz/bundletest"
	"github.com/writ-mesh/writ/authz/unpack"
)

// client is OPA's client of a service, guarded.
func client(t *testing.T, service string, limits Limits) rest.Client {
	t.Helper()
	raw, guards, err := guardServices(json.RawMessage(`{"s": `+service+`}`), limits)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	c, err := rest.New(all["s"], nil, rest.Name("s"), rest.AuthPluginLookup(func(name string) rest.HTTPAuthPlugin { return guards[name] }))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What a malicious server of bundles gets out of this service.
func TestMaliciousServer(t *testing.T) {
	limits := Limits{Packed: 64 << 10, Unpacked: 1 << 20, Stall: time.Minute, Total: time.Minute}
	packed := bundletest.Tarball(t, map[string]string{"data.json": strings.Repeat(" ", 8<<20)})
	if int64(len(packed)) >= limits.Packed {
		t.Fatalf("the bomb has %d bytes", len(packed))
	}
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		want   error
	}{
		"says it is large": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000000")
			w.WriteHeader(200)
		}, errTooLarge},
		"is large": {func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				_, _ = w.Write(make([]byte, 1<<10))
				_ = http.NewResponseController(w).Flush()
			}
		}, errTooLarge},
		"unpacks to much": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(packed) }, unpack.ErrTooLarge},
		"stands still": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte("x"))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, errTooSlow},
		"is an error and large": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); _, _ = w.Write(make([]byte, 1<<20)) }, errTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(c.answer))
			defer s.Close()
			limits := limits
			if errors.Is(c.want, errTooSlow) {
				limits.Stall = time.Second
			}
			resp, err := client(t, fmt.Sprintf(`{"url": %q}`, s.URL), limits).Do(t.Context(), http.MethodGet, "b.tar.gz")
			if err == nil {
				_ = resp.Body.Close()
			}
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

// Credentials and headers of a service go to its own host.
func TestRedirects(t *testing.T) {
	var got []http.Header
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Clone())
		_, _ = w.Write([]byte("there"))
	}))
	defer other.Close()
	var home *httptest.Server
	home = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, other.URL+"/b.tar.gz", http.StatusFound)
		case "/here":
			http.Redirect(w, r, home.URL+"/b.tar.gz", http.StatusTemporaryRedirect)
		default:
			_, _ = w.Write([]byte("here " + r.Header.Get("X-Key")))
		}
	}))
	defer home.Close()
	for kind, redirected := range map[string]bool{"": false, "oci": true} {
		got = nil
		c := client(t, fmt.Sprintf(`{"url": %q, "type": %q, "headers": {"X-Key": "k"}, "credentials": {"bearer": {"token": "secret"}}}`, home.URL, kind), defaultLimits())
		resp, err := c.Do(t.Context(), http.MethodGet, "away")
		switch {
		case redirected && err != nil:
			t.Errorf("type %q: %v", kind, err)
		case redirected:
			_ = resp.Body.Close()
			if len(got) != 1 || got[0].Get("Authorization") != "" || got[0].Get("X-Key") != "" {
				t.Errorf("type %q: the other host got %v", kind, got)
			}
		case !errors.Is(err, errOtherHost) || len(got) != 0:
			t.Errorf("type %q: error %v, the other host got %v", kind, err, got)
		}
		resp, err = c.Do(t.Context(), http.MethodGet, "here")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if string(b) != "here k" {
			t.Errorf("type %q: %s", kind, b)
		}
	}
}

func TestAdmit(t *testing.T) {
	for name, c := range map[string]struct {
		home, to string
		registry bool
		want     error
		// keeps says that credentials go along.
		keeps bool
	}{
		"home":                       {"https://a.example", "https://a.example/x", false, nil, true},
		"home, another port":         {"https://a.example", "https://a.example:8443/x", false, errOtherHost, false},
		"plain text":                 {"https://a.example", "http://a.example/x", false, errPlainText, false},
		"plain text, registry":       {"https://a.example", "http://a.example/x", true, errPlainText, false},
		"registry's store":           {"https://a.example", "https://b.example/x", true, nil, false},
		"registry's token server":    {"https://registry.a.example", "https://auth.a.example/x", true, nil, true},
		"neighbour of public suffix": {"https://a.github.io", "https://b.github.io/x", true, nil, false},
		"plain registry":             {"http://a.example", "http://auth.a.example/x", true, nil, false},
		"address":                    {"https://192.0.2.1", "https://192.0.2.2/x", true, nil, false},
		"address with the same end":  {"https://192.0.2.1", "https://198.51.2.1/x", true, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			home, err := url.Parse(c.home)
			if err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.to, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "x")
			req.Header.Set("X-Key", "x")
			out, err := (&guard{home: home, registry: c.registry, names: []string{"X-Key"}}).admit(req)
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if err == nil && (out.Header.Get("Authorization") != "" || out.Header.Get("X-Key") != "") != c.keeps {
				t.Errorf("headers %v", out.Header)
			}
			if req.Header.Get("Authorization") == "" {
				t.Error("the caller's request was changed")
			}
		})
	}
}

// quiet is a server that takes a request and says nothing.
type quiet struct{}

func (quiet) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// Who waits for news waits for as long as it asked to, and a little longer.
func TestLongPollEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a.example", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Prefer", "modes=snapshot,delta;wait=300")
		start := time.Now()
		_, err = (&guard{base: quiet{}, home: req.URL, limits: defaultLimits()}).RoundTrip(req) //nolint:bodyclose // there is none
		if took := time.Since(start); !errors.Is(err, errTooSlow) || took != 330*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

// atTheEnd is an answer during whose last read the request is given up.
type atTheEnd struct{ giveUp context.CancelFunc }

func (a atTheEnd) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{Header: http.Header{}, Body: io.NopCloser(a)}, nil
}

func (a atTheEnd) Read([]byte) (int, error) {
	a.giveUp()
	return 0, io.EOF
}

// Who closes the body of an answer that was given up does not touch what came out of it;
// the race detector would see it.
func TestAnswerGivenUpAtItsEnd(t *testing.T) {
	for range 10 {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://a.example", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&guard{base: atTheEnd{cancel}, home: req.URL, limits: defaultLimits()}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
}
