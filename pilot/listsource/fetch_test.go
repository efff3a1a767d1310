package listsource

import (
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/pilot/fetch"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestGet asks real servers.
func TestGet(t *testing.T) {
	mux := http.NewServeMux()
	plain := httptest.NewServer(mux)
	defer plain.Close()
	secure := httptest.NewTLSServer(mux)
	defer secure.Close()
	mux.HandleFunc("/list", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write([]byte("10.0.0.1\n"))
	})
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte("<h1>log in</h1>"))
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 2*maxBody)) })
	mux.HandleFunc("/short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("10.0.0.1\n"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/on", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/list", http.StatusFound) })
	mux.HandleFunc("/down", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL+"/list", http.StatusFound)
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "file:///etc/passwd")
		w.WriteHeader(http.StatusFound)
	})
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	limits := Limits{ReadFile: func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }}
	elsewhere, own := limits, limits
	elsewhere.Setting = "list_urls"
	elsewhere.URLs = []string{"https://lists.example/a", plain.URL + "/other/"}
	own.AddressProblem = func(string, uint32) string { return "is reserved" }
	for _, c := range []struct {
		limits Limits
		src    model.AccessSource
		tag    string
		want   string // of the error; else the body
	}{
		{limits, model.AccessSource{URL: plain.URL + "/list"}, "", "10.0.0.1\n"},
		{limits, model.AccessSource{URL: plain.URL + "/list"}, `"1"`, "unchanged"},
		{limits, model.AccessSource{URL: plain.URL + "/on"}, "", "10.0.0.1\n"},
		{limits, model.AccessSource{URL: secure.URL + "/list", CAFile: "ca.pem"}, "", "10.0.0.1\n"},
		{limits, model.AccessSource{URL: secure.URL + "/list"}, "", "certificate"},
		{limits, model.AccessSource{URL: secure.URL + "/list", CAFile: "none.pem"}, "", "caCertificates"},
		{limits, model.AccessSource{URL: secure.URL + "/down", CAFile: "ca.pem"}, "", "another scheme"},
		{limits, model.AccessSource{URL: plain.URL + "/file"}, "", "another scheme"},
		{limits, model.AccessSource{URL: plain.URL + "/round"}, "", "too often"},
		{limits, model.AccessSource{URL: plain.URL + "/missing"}, "", "status 404"},
		{limits, model.AccessSource{URL: plain.URL + "/page"}, "", "a page"},
		{limits, model.AccessSource{URL: plain.URL + "/short"}, "", "unexpected EOF"},
		{limits, model.AccessSource{URL: plain.URL + "/slow", Timeout: 50 * time.Millisecond}, "", "deadline"},
		{limits, model.AccessSource{URL: "http://169.254.169.254/latest/meta-data/"}, "", "link-local"},
		{limits, model.AccessSource{URL: "http://[fe80::1]/"}, "", "link-local"},
		{limits, model.AccessSource{URL: "http://0.0.0.0:1/"}, "", "unspecified"},
		{own, model.AccessSource{URL: plain.URL + "/list"}, "", "is reserved"},
		{elsewhere, model.AccessSource{URL: plain.URL + "/list"}, "", "list_urls"},
		{elsewhere, model.AccessSource{URL: plain.URL + "/other/../list"}, "", "list_urls"},
		{elsewhere, model.AccessSource{URL: plain.URL + "/otherwise"}, "", "list_urls"},
		{elsewhere, model.AccessSource{URL: plain.URL + "/other/x"}, "", "status 404"},
	} {
		if c.src.Timeout == 0 {
			c.src.Timeout = 10 * time.Second
		}
		a, err := c.limits.get(t.Context(), &c.src, c.tag)
		got := string(a.Body)
		switch {
		case err != nil:
			got = err.Error()
		case a.Unchanged:
			got = "unchanged"
		}
		if !strings.Contains(got, c.want) || (err == nil) != (c.want == "10.0.0.1\n" || c.want == "unchanged") {
			t.Errorf("%s: %q, want %q", c.src.URL, got, c.want)
		}
	}
	a, err := limits.get(t.Context(), &model.AccessSource{URL: plain.URL + "/large", Timeout: time.Minute}, "")
	if err == nil {
		t.Errorf("%d bytes", len(a.Body))
	}
	if !errors.Is(err, fetch.ErrTooLarge) {
		t.Errorf("a large list: %v", err)
	}
}
