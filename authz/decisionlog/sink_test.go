package decisionlog_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/writ-mesh/writ/authz/decisionlog"
)

// pack makes a batch as the log makes them.
func pack(t *testing.T, text string) decisionlog.Batch {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return decisionlog.Batch{Packed: out.Bytes(), Lines: []byte("{\"decision_id\":\"1\"}\n{\"decision_id\":\"2\"}\n")}
}

const two = "[\n{\"decision_id\":\"1\"},\n{\"decision_id\":\"2\"}\n]\n"

// TestFile: a record a line, appended, for this user alone, in a file that may be
// moved away.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	f := decisionlog.File{Path: path}
	const lines = "{\"decision_id\":\"1\"}\n{\"decision_id\":\"2\"}\n"
	check := func(name, want string) {
		t.Helper()
		got, err := os.ReadFile(name)
		info, statErr := os.Stat(name)
		if err != nil || statErr != nil || string(got) != want || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %q, %v", name, got, errors.Join(err, statErr))
		}
	}
	for range 2 {
		if err := f.Send(t.Context(), pack(t, two)); err != nil {
			t.Fatal(err)
		}
	}
	check(path, lines+lines)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := f.Send(t.Context(), pack(t, two)); err != nil {
		t.Fatal(err)
	}
	check(path, lines)
	var refused *decisionlog.RefusedError
	if err := (decisionlog.File{Path: "/dev/full"}).Send(t.Context(), pack(t, two)); err == nil || errors.As(err, &refused) {
		t.Errorf("a full disk: %v", err)
	}
}

// TestHTTP: what is posted is a JSON array, gzip'd, as OPA posts it; what an answer
// means for the batch.
func TestHTTP(t *testing.T) {
	status, followed := http.StatusOK, false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/logs" {
			followed = true
			return
		}
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		text, err := io.ReadAll(z)
		var records []decisionlog.Record
		if err != nil || json.Unmarshal(text, &records) != nil || len(records) != 2 || records[1].ID != "2" {
			t.Errorf("got %q, %v", text, err)
		}
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Content-Encoding") != "gzip" || r.Header.Get("Authorization") != "Bearer s3cr3t" {
			t.Errorf("%s with %v", r.Method, r.Header)
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	}))
	defer srv.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s3cr3t\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := decisionlog.NewHTTP(decisionlog.HTTPOptions{URL: srv.URL + "/logs", TokenFile: token})
	if err != nil {
		t.Fatal(err)
	}
	for code, want := range map[int]string{200: "taken", 204: "taken", 302: "again", 400: "never", 401: "again", 404: "again", 413: "never", 429: "again", 500: "again", 503: "again"} {
		status = code
		got := "taken"
		var refused *decisionlog.RefusedError
		if err := h.Send(t.Context(), pack(t, two)); errors.As(err, &refused) {
			got = "never"
		} else if err != nil {
			got = "again"
		}
		if got != want {
			t.Errorf("%d: %s, want %s", code, got, want)
		}
	}
	if followed {
		t.Error("a redirect was followed, with the token")
	}
}
