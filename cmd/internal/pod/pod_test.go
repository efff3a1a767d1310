package pod_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/writ-mesh/writ/cmd/internal/pod"
)

func server(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestReady(t *testing.T) {
	url := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			http.Error(w, "not ready: ledger: full", http.StatusServiceUnavailable)
		}
	})
	if err := pod.Run(t.Context(), []string{"ready", url + "/readyz"}, nil, nil); err != nil {
		t.Error(err)
	}
	err := pod.Run(t.Context(), []string{"ready", url + "/other"}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "503: not ready: ledger: full") {
		t.Errorf("a service that is not ready: %v", err)
	}
	if err := pod.Run(t.Context(), []string{"ready", "http://127.0.0.1:1/"}, nil, nil); err == nil {
		t.Error("nobody listens, and it is ready")
	}
}

func ask(t *testing.T, r pod.Request) pod.Answer {
	t.Helper()
	in, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := pod.Run(t.Context(), []string{"request"}, bytes.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	var a pod.Answer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		t.Fatalf("%v: %s", err, out.Bytes())
	}
	return a
}

func TestRequest(t *testing.T) {
	var calls atomic.Int64
	url := server(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "/elsewhere")
		w.Header().Set("X-Seen", r.Method+" "+r.Host+" "+r.Header.Get("X-In"))
		w.WriteHeader(http.StatusFound)
		_, _ = w.Write([]byte{byte('0' + calls.Add(1))})
	})
	a := ask(t, pod.Request{Method: "PUT", URL: url, Headers: map[string]string{"host": "books", "x-in": "yes"}, Repeat: 3})
	if a.Status != http.StatusFound || a.Header.Get("X-Seen") != "PUT books yes" || a.Body != "3" || a.Error != "" {
		t.Errorf("got %+v", a)
	}
	if a := ask(t, pod.Request{Method: "GET", URL: "http://127.0.0.1:1/"}); a.Error == "" || a.Status != 0 {
		t.Errorf("nobody listens: %+v", a)
	}
	if err := pod.Run(t.Context(), []string{"request"}, strings.NewReader(`{"uri":"x"}`), nil); err == nil {
		t.Error("an unknown field is taken")
	}
}

func TestHoldEndsWhenTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := pod.Run(ctx, []string{"hold"}, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"ready"}, {"hold", "x"}, {"other"}} {
		if err := pod.Run(t.Context(), args, nil, nil); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
