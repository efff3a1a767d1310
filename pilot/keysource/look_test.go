package keysource

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/jwks"
	"github.com/writ-mesh/writ/pilot/fetch"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestLook asks real servers, most of which lie.
func TestLook(t *testing.T) {
	key := ecKey(t, "a")
	mux := http.NewServeMux()
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	asked := ""
	serve := func(path, body string, header ...string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			asked = r.Header.Get("Authorization") + r.Header.Get("Cookie")
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			if tag := w.Header().Get("ETag"); tag != "" && r.Header.Get("If-None-Match") == tag {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			if w.Header().Get("Location") != "" {
				w.WriteHeader(http.StatusFound)
			}
			_, _ = w.Write([]byte(body))
		})
	}
	serve("/jwks", keySet(key), "ETag", `"1"`, "Content-Type", "application/jwk-set+json", "Cache-Control", "max-age=30")
	serve("/page", keySet(key), "Content-Type", "text/html")
	serve("/on", keySet(key), "Location", "/jwks")
	serve("/inside", keySet(key), "Location", "http://169.254.169.254/latest/meta-data/")
	serve("/large", keySet(key)+strings.Repeat(" ", jwks.MaxSize))
	serve("/many", keySet(strings.TrimSuffix(strings.Repeat(key+",", 300), ",")))
	serve("/oct", keySet(`{"kty":"oct","alg":"HS256","k":"c2VjcmV0"}`))
	serve("/confused", keySet(strings.Replace(key, `"kty"`, `"alg":"HS256","kty"`, 1)))
	serve("/twice", keySet(strings.Replace(key, `"kid":"a"`, `"kid":"a","kid":"b"`, 1)))
	serve("/x5u", keySet(strings.Replace(key, `"kty"`, `"x5u":"http://127.0.0.1:1/","jku":"http://127.0.0.1:1/","kty"`, 1)))
	serve("/issuer/.well-known/openid-configuration", `{"jwks_uri":"`+plain.URL+`/jwks"}`)
	mux.HandleFunc("/short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte(keySet(key)))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/drip", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = w.Write([]byte(" "))
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	open := fetch.Guard{}
	at := func(uri string) model.KeyPlace { return model.KeyPlace{URI: uri} }
	u, err := url.Parse(plain.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		guard fetch.Guard
		place model.KeyPlace
		roots *x509.CertPool
		want  string // of the error; else of the set
	}{
		{open, at(plain.URL + "/jwks"), nil, `{"keys":[{"kty":"EC","kid":"a","use":"sig","alg":"ES256",`},
		{open, at(secure.URL + "/jwks"), roots, `{"keys":[{"kty":"EC"`},
		{open, at(secure.URL + "/jwks"), nil, "certificate"},
		{open, model.KeyPlace{URI: "http://issuer.example/jwks", Addresses: []string{"127.0.0.1:1", u.Host}}, nil, `{"keys":[{"kty":"EC"`},
		{open, model.KeyPlace{URI: plain.URL + "/issuer/.well-known/openid-configuration", Discovery: true}, nil, `{"keys":[{"kty":"EC"`},
		{open, model.KeyPlace{URI: secure.URL + "/issuer/.well-known/openid-configuration", Discovery: true}, roots, "is not https"},
		{open, at(plain.URL + "/x5u"), nil, `{"keys":[{"kty":"EC","kid":"a","use":"sig","alg":"ES256",`},
		{open, at(plain.URL + "/twice"), nil, `{"keys":[{"kty":"EC","kid":"b"`}, // written anew, everybody reads the same
		{open, at(plain.URL + "/page"), nil, "a page"},
		{open, at(plain.URL + "/on"), nil, "the server sends on"},
		{open, at(plain.URL + "/inside"), nil, "the server sends on"},
		{open, at(plain.URL + "/large"), nil, "too large"},
		{open, at(plain.URL + "/many"), nil, "too large"},
		{open, at(plain.URL + "/oct"), nil, "no key by which"},
		{open, at(plain.URL + "/confused"), nil, "no key by which"},
		{open, at(plain.URL + "/short"), nil, "unexpected EOF"},
		{open, at(plain.URL + "/slow"), nil, "deadline"},
		{open, at(plain.URL + "/drip"), nil, "deadline"},
		{open, at(plain.URL + "/none"), nil, "status 404"},
		{open, at("http://169.254.169.254/latest/meta-data/"), nil, "link-local"},
		{open, at(strings.Replace(plain.URL, "http://", "http://a:b@", 1) + "/jwks"), nil, "password"},
		{fetch.Guard{URLs: []string{"https://issuer.example/"}, Setting: "key_set_urls"}, at(plain.URL + "/jwks"), nil, "key_set_urls"},
		{fetch.Guard{AddressProblem: func(string, uint32) string { return "is reserved" }}, at(plain.URL + "/jwks"), nil, "is reserved"},
		{fetch.Guard{AddressProblem: func(string, uint32) string { return "is reserved" }}, model.KeyPlace{URI: "http://issuer.example/jwks", Addresses: []string{u.Host}}, nil, "is reserved"},
	} {
		k := &Keeper{get: c.guard.Get, roots: c.roots}
		p := Place{KeyPlace: c.place, Timeout: 20 * time.Second}
		if c.want == "deadline" {
			p.Timeout = leastTimeout
		}
		a, err := k.look(t.Context(), p, tag{})
		got := a.text
		if err != nil {
			got = "error: " + err.Error()
		}
		if !strings.Contains(got, c.want) || (err == nil) != strings.HasPrefix(c.want, "{") {
			t.Errorf("%s: %s, want %q", c.place.URI, got, c.want)
		}
		if asked != "" {
			t.Errorf("%s: asked with %q", c.place.URI, asked)
		}
	}
	k := &Keeper{get: open.Get}
	a, err := k.look(t.Context(), place(plain.URL+"/jwks"), tag{URI: plain.URL + "/jwks", Value: `"1"`})
	if err != nil || !a.unchanged || a.next != 30*time.Second {
		t.Errorf("with its tag: %+v %v", a, err)
	}
	if a, err = k.look(t.Context(), place(plain.URL+"/jwks"), tag{URI: "http://127.0.0.1/other", Value: `"1"`}); err != nil || a.unchanged {
		t.Errorf("with the tag of another place: %+v %v", a, err)
	}
}

// FuzzDecode: what proxies get of a set comes out of itself again, and has no secret.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(keySet(ecKey(f, "a"))))
	f.Add([]byte(keySet(ecKey(f, "a"), `{"kty":"oct","k":"AA"}`, ecKey(f, ""))))
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		text, set, err := decode(body)
		if err != nil {
			return
		}
		again, same, err := decode([]byte(text))
		if err != nil || again != text || len(same.Keys) > len(set.Keys) {
			t.Fatalf("%s comes out as %s, %v", text, again, err)
		}
		if strings.Contains(fmt.Sprint(text), `"kty":"oct"`) && !strings.Contains(string(body), `\`) {
			t.Fatalf("a symmetric key in %s", text)
		}
	})
}
