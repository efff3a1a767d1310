package main

import (
	_ "embed"
	"html/template"
	"net/http"
	"strings"
	"time"
)

//go:embed productpage.html
var pageText string

var page = template.Must(template.New("productpage").Funcs(template.FuncMap{
	"stars": func(n int) string { return strings.Repeat("★", n) + strings.Repeat("☆", max(5-n, 0)) },
}).Parse(pageText))

const (
	title       = "The Comedy of Errors"
	description = "The Comedy of Errors is one of William Shakespeare's early plays. It is his shortest and one of his most farcical comedies, with a major part of the humour coming from slapstick and mistaken identity, in addition to puns and word play."
	userCookie  = "bookinfo-user"
)

type pageData struct {
	Title, Description, User  string
	Details                   details
	Reviews                   reviews
	DetailsError, ReviewError string
}

func (a *app) productpage() http.Handler {
	mux := serviceMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/productpage", http.StatusFound)
	})
	mux.HandleFunc("GET /productpage", a.showPage)
	mux.HandleFunc("POST /login", login)
	mux.HandleFunc("GET /logout", logout)
	mux.HandleFunc("GET /api/v1/products", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, []map[string]any{{"id": 0, "title": title, "descriptionHtml": description}})
	})
	mux.HandleFunc("GET /api/v1/products/{id}", a.relay(func(r *http.Request) string { return a.detailsURL + "/details/" + r.PathValue("id") }))
	mux.HandleFunc("GET /api/v1/products/{id}/reviews", a.relay(func(r *http.Request) string { return a.reviewsURL + "/reviews/" + r.PathValue("id") }))
	mux.HandleFunc("GET /api/v1/products/{id}/ratings", a.relay(func(r *http.Request) string { return a.ratingsURL + "/ratings/" + r.PathValue("id") }))
	return mux
}

func (a *app) showPage(w http.ResponseWriter, r *http.Request) {
	data := pageData{Title: title, Description: description, User: user(r)}
	head := outgoing(r)
	if _, err := a.get(r.Context(), head, a.detailsURL+"/details/0", &data.Details); err != nil {
		data.DetailsError = "Sorry, product details are currently unavailable for this book."
	}
	if _, err := a.get(r.Context(), head, a.reviewsURL+"/reviews/0", &data.Reviews); err != nil {
		data.ReviewError = "Sorry, product reviews are currently unavailable for this book."
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := page.Execute(w, data); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// relay answers with what another service says, as JSON.
func (a *app) relay(target func(*http.Request) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var out any
		status, err := a.get(r.Context(), outgoing(r), target(r), &out)
		if err != nil {
			if status == 0 {
				status = http.StatusBadGateway
			}
			http.Error(w, err.Error(), status)
			return
		}
		writeJSON(w, out)
	}
}

// outgoing gives the headers for calls made on behalf of r: the user who is
// logged in travels as end-user.
func outgoing(r *http.Request) http.Header {
	h := r.Header.Clone()
	if u := user(r); u != "" {
		h.Set("end-user", u)
	}
	return h
}

func user(r *http.Request) string {
	if c, err := r.Cookie(userCookie); err == nil {
		return c.Value
	}
	return ""
}

// login takes any password, as the original does.
func login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4096)
	http.SetCookie(w, &http.Cookie{Name: userCookie, Value: r.FormValue("username"), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, Expires: time.Now().Add(24 * time.Hour)})
	http.Redirect(w, r, "/productpage", http.StatusFound)
}

func logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: userCookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/productpage", http.StatusFound)
}
