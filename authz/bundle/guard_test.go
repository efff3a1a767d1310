package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
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

// bomb is a bundle of a few kilobytes that unpacks to this many bytes.
func bomb(t testing.TB, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "data.json", Mode: 0o600, Size: size, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 64<<10)
	for left := size; left > 0; left -= int64(len(zeros)) {
		if _, err := w.Write(zeros[:min(left, int64(len(zeros)))]); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = w.Close(), z.Close()
	return b.Bytes()
}

// What a malicious server of bundles gets out of this service.
func TestMaliciousServer(t *testing.T) {
	limits := Limits{Packed: 64 << 10, Unpacked: 1 << 20, Stall: time.Minute, Total: time.Minute}
	packed := bomb(t, 8<<20)
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
		"unpacks to much": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(packed) }, errTooLarge},
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

func TestCheckArchive(t *testing.T) {
	many := make(map[string]string)
	for i := range 50 {
		many[fmt.Sprintf("%d.json", i)] = "{}"
	}
	for name, c := range map[string]struct {
		archive []byte
		limit   int64
		want    string
	}{
		"fits":            {bundletest.Tarball(t, policy(1)), 10 << 10, ""},
		"no archive":      {[]byte("text"), 1, ""},
		"broken":          {bundletest.Tarball(t, policy(1))[:50], 10 << 10, ""},
		"one large file":  {bomb(t, 2<<20), 1 << 20, "larger than the limit"},
		"many small ones": {bundletest.Tarball(t, many), 20 << 10, "larger than the limit"},
		"sparse":          {sparse(t, 1<<30), 1 << 20, "larger than the limit"},
		"delta":           {bundletest.Tarball(t, map[string]string{"a/patch.json": "{}"}), 1 << 20, "delta"},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkArchive(c.archive, c.limit)
			if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// sparse is an archive whose only file says that it is large and has no bytes, by
// the old form of GNU tar: header type S, the real size at 483.
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	var block [512]byte
	copy(block[:], "data.json")
	copy(block[100:], "0000600\x00")
	copy(block[124:], "00000000000\x00")
	block[156] = 'S'
	copy(block[257:], "ustar  \x00")
	copy(block[386:], fmt.Sprintf("%011o\x00%011o\x00", size, 0)) // one empty piece at the end
	copy(block[483:], fmt.Sprintf("%011o\x00", size))
	copy(block[148:], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(append(block[:], make([]byte, 1024)...))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func FuzzCheckArchive(f *testing.F) {
	f.Add(bundletest.Tarball(f, policy(1)))
	f.Add(bomb(f, 1<<20))
	f.Add(sparse(f, 1<<30))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 16
		if checkArchive(b, limit) != nil || !bytes.HasPrefix(b, []byte(gzipMagic)) {
			return
		}
		// What passes fits, as a reader that trusts its sizes finds.
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		var total int64
		for r := tar.NewReader(z); ; {
			if _, err := r.Next(); err != nil {
				break
			}
			n, err := io.Copy(io.Discard, r)
			if total += n; total > limit {
				t.Fatalf("%d bytes passed a limit of %d", total, limit)
			}
			if err != nil {
				break
			}
		}
	})
}
