package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestLostIsNotRefused: a connection that ends, or that another takes the place of, is told from one that is refused.
func TestLostIsNotRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		lost   bool
	}{
		"refused": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, false},
		"cut":     {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, true},
		"closed after an answer, and the next one refused": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var revoked atomic.Bool
			var after atomic.Int32
			s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case !revoked.Load():
				case after.Add(1) == 1:
					tc.answer(w, r)
				default:
					w.WriteHeader(http.StatusForbidden)
				}
			}))
			defer s.Close()
			c, address := s.Client(), strings.TrimPrefix(s.URL, "https://")
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if got, _, err := status(ctx, c, address); got != http.StatusOK || err != nil {
				t.Fatal(got, err)
			}
			revoked.Store(true)
			lost, err := refusedThere(ctx, c, address)
			if err != nil || lost != tc.lost {
				t.Errorf("lost: %t, %v", lost, err)
			}
		})
	}
	r := refusals{live: []time.Duration{time.Second}, fresh: []time.Duration{time.Second}}
	r.add(refusals{lost: []time.Duration{2 * time.Millisecond, time.Millisecond}})
	rows := r.rows(20)
	if len(rows) != 3 || !strings.Contains(rows[1].note, "2 of 3, the first after 1.0 ms, the last after 2.0 ms") || !strings.Contains(rows[0].note, "of 1;") {
		t.Errorf("%+v", rows)
	}
	if rows := (&refusals{}).rows(20); len(rows) != 1 {
		t.Errorf("nothing measured: %+v", rows)
	}
}
