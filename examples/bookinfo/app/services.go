package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// forwarded are the headers that a service passes on so that the mesh can join
// the spans of one request, and the user that reviews are routed by.
var forwarded = []string{
	"x-request-id", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags", "b3",
	"traceparent", "tracestate", "x-ot-span-context", "end-user", "user-agent", "authorization",
}

type app struct {
	version string
	client  *http.Client

	detailsURL, reviewsURL, ratingsURL string

	mu    sync.Mutex
	stars map[string]int // ratings, by reviewer
}

func newApp(version string) *app {
	return &app{
		version:    version,
		client:     &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: proxy, MaxIdleConnsPerHost: 64}},
		detailsURL: env("DETAILS", "http://details:9080"),
		reviewsURL: env("REVIEWS", "http://reviews:9080"),
		ratingsURL: env("RATINGS", "http://ratings:9080"),
		stars:      map[string]int{"Reviewer1": 5, "Reviewer2": 4},
	}
}

// proxy takes $http_proxy for every host, which http.ProxyFromEnvironment does
// not: it leaves out the loopback addresses that the local stack lives on.
func proxy(*http.Request) (*url.URL, error) {
	if p := env("http_proxy", ""); p != "" {
		return url.Parse(p)
	}
	return nil, nil //nolint:nilnil // no proxy, says net/http
}

// get asks another service and decodes its JSON answer.
func (a *app) get(ctx context.Context, in http.Header, target string, into any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return 0, err
	}
	for _, h := range forwarded {
		if v := in.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return resp.StatusCode, err
	}
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, fmt.Errorf("%s answered %d: %.200s", req.URL.Host, resp.StatusCode, body)
	}
	return resp.StatusCode, json.Unmarshal(body, into)
}

type details struct {
	ID        int    `json:"id"`
	Author    string `json:"author"`
	Year      int    `json:"year"`
	Type      string `json:"type"`
	Pages     int    `json:"pages"`
	Publisher string `json:"publisher"`
	Language  string `json:"language"`
	ISBN10    string `json:"ISBN-10"`
	ISBN13    string `json:"ISBN-13"`
}

func (a *app) details() http.Handler {
	mux := serviceMux()
	mux.HandleFunc("GET /details/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			http.Error(w, "the product id is a number", http.StatusBadRequest)
			return
		}
		writeJSON(w, details{
			ID: id, Author: "William Shakespeare", Year: 1595, Type: "paperback", Pages: 200,
			Publisher: "PublisherA", Language: "English", ISBN10: "1234567890", ISBN13: "123-1234567890",
		})
	})
	return mux
}

type rating struct {
	Stars int    `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"`
}

type review struct {
	Reviewer string  `json:"reviewer"`
	Text     string  `json:"text"`
	Rating   *rating `json:"rating,omitempty"`
}

type reviews struct {
	ID      string   `json:"id"`
	Version string   `json:"version"`
	Reviews []review `json:"reviews"`
}

type ratings struct {
	ID      int            `json:"id"`
	Ratings map[string]int `json:"ratings"`
}

func (a *app) reviews() http.Handler {
	mux := serviceMux()
	mux.HandleFunc("GET /reviews/{id}", func(w http.ResponseWriter, r *http.Request) {
		out := reviews{ID: r.PathValue("id"), Version: a.version, Reviews: []review{
			{Reviewer: "Reviewer1", Text: "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"},
			{Reviewer: "Reviewer2", Text: "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare."},
		}}
		if a.version != "v1" {
			a.rate(r, out.Reviews)
		}
		w.Header().Set("x-reviews-version", a.version)
		writeJSON(w, out)
	})
	return mux
}

// rate adds the stars: black in v2, red in v3.
func (a *app) rate(r *http.Request, to []review) {
	color := map[string]string{"v2": "black", "v3": "red"}[a.version]
	var got ratings
	_, err := a.get(r.Context(), r.Header, a.ratingsURL+"/ratings/"+url.PathEscape(r.PathValue("id")), &got)
	for i := range to {
		if err != nil {
			to[i].Rating = &rating{Error: "Ratings service is currently unavailable"}
			continue
		}
		to[i].Rating = &rating{Stars: got.Ratings[to[i].Reviewer], Color: color}
	}
}

func (a *app) ratings() http.Handler {
	mux := serviceMux()
	mux.HandleFunc("GET /ratings/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			http.Error(w, "the product id is a number", http.StatusBadRequest)
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		writeJSON(w, ratings{ID: id, Ratings: a.stars})
	})
	mux.HandleFunc("POST /ratings/{id}", func(w http.ResponseWriter, r *http.Request) {
		var in map[string]int
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&in); err != nil || len(in) > 10 {
			http.Error(w, `want {"<reviewer>": <stars>}`, http.StatusBadRequest)
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.stars = in
		writeJSON(w, ratings{Ratings: a.stars})
	})
	return mux
}

// serviceMux has what every service answers.
func serviceMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, map[string]string{"status": "healthy"}) })
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
