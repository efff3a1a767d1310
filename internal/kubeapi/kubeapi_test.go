package kubeapi_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/kubeapi"
)

// serve runs an API and returns its address and a client of it.
func serve(t *testing.T, h http.HandlerFunc) (string, *kubeapi.Client) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	dir := t.TempDir()
	c := &kubeapi.Client{CAFile: filepath.Join(dir, "ca.pem"), TokenFile: filepath.Join(dir, "token"), Timeout: 10 * time.Second, MaxAnswer: 100}
	for file, data := range map[string][]byte{
		c.CAFile: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), c.TokenFile: []byte("secret\n"),
	} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s.URL, c
}

func TestCall(t *testing.T) {
	t.Parallel()
	url, c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprint(w, r.Method, " ", r.Header.Get("Authorization"), " ", r.Header.Get("Content-Type"), " ", r.Header.Get("Accept"), " ", string(body))
	})
	for method, want := range map[string]string{
		http.MethodPost:  "POST Bearer secret application/json application/json {}",
		http.MethodPatch: "PATCH Bearer secret application/merge-patch+json application/json {}",
	} {
		if got, err := c.Call(t.Context(), method, url, []byte("{}")); err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	c.Accept, c.TokenFile = "text/plain", ""
	if got, err := c.Call(t.Context(), http.MethodGet, url, nil); err != nil || string(got) != "GET   text/plain " {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := c.Call(t.Context(), http.MethodPost, url, []byte(strings.Repeat("x", 100))); err == nil || !strings.Contains(err.Error(), "more than 100 bytes") {
		t.Errorf("an answer that is too long: %v", err)
	}
}

// TestRefusals: what is not 200 or 201 is an error with the API's words, and the token
// goes nowhere else.
func TestRefusals(t *testing.T) {
	t.Parallel()
	elsewhere, _ := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a redirection is followed") })
	url, c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, elsewhere, http.StatusTemporaryRedirect)
		case "/words":
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"kind":"Status","message":"it is\nthere"}`)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/redirect": {http.StatusTemporaryRedirect, "307"}, "/words": {http.StatusConflict, `409 Conflict: "it is\nthere"`}, "/": {http.StatusNoContent, "204"},
	} {
		for name, call := range map[string]func() error{
			"call":  func() error { _, err := c.Call(t.Context(), http.MethodGet, url+path, nil); return err },
			"watch": func() error { _, err := c.Watch(t.Context(), url+path); return err },
		} {
			status := new(kubeapi.StatusError)
			if err := call(); !errors.As(err, &status) || status.Code != want.code || !strings.Contains(err.Error(), want.text) {
				t.Errorf("%s %s: %v", name, path, err)
			}
		}
	}
}

// TestWatch: lines come as they are sent, an end is no error, a line that is too long
// is, and so is a server that does not begin.
func TestWatch(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	url, c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			<-r.Context().Done()
			return
		case "/long":
			_, _ = io.WriteString(w, "one\n"+strings.Repeat("x", 200)+"\n")
			return
		}
		for _, line := range []string{"one", "two"} {
			_, _ = io.WriteString(w, line+"\n")
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	})
	lines, err := c.Watch(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line, err := range lines {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(line))
		next <- struct{}{}
	}
	if strings.Join(got, " ") != "one two" {
		t.Errorf("got %q", got)
	}
	if lines, err = c.Watch(t.Context(), url+"/long"); err != nil {
		t.Fatal(err)
	}
	var ends []error
	for _, err := range lines {
		ends = append(ends, err)
	}
	if len(ends) != 2 || ends[0] != nil || ends[1] == nil {
		t.Errorf("a line that is too long: %v", ends)
	}
	c.Timeout = 50 * time.Millisecond
	if _, err := c.Watch(t.Context(), url+"/slow"); err == nil {
		t.Error("a server that does not begin is waited for")
	}
}
