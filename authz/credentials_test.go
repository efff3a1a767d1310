package authz

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// TestBundleCredentials: a RegoPolicy whose bundle is for who shows a token is loaded
// when the token is in the folder of the bundle's host, and follows a new token. Until
// then everything is refused, and the status says why; another host gets nothing.
func TestBundleCredentials(t *testing.T) {
	var token atomic.Value
	token.Store("Bearer one")
	content := policyBundle(t, "1", "allow := true")
	serve := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != token.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/gzip")
		_, _ = w.Write(content)
	}
	host := httptest.NewTLSServer(http.HandlerFunc(serve))
	t.Cleanup(host.Close)
	var leaked atomic.Value
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			leaked.Store(a)
		}
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(other.Close)
	state := t.TempDir()
	folder := func(s *httptest.Server) string {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		folder := filepath.Join(state, "bundle-credentials", u.Host)
		writeFile(t, filepath.Join(folder, "roots.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
		return folder
	}
	ours := folder(host)
	folder(other)
	m := newMesh(t, func(c *Config) { c.State = state })
	policy := func(name, url string) *configpb.RegoPolicy {
		p := remotePolicy(name, url+"/p.tar.gz")
		p.Bundle.Credentials = &configpb.BundleCredentials{TokenFile: "token", CaFile: "roots.pem"}
		return p
	}
	m.apply(t, policy("default/remote", host.URL), policy("default/other", other.URL))
	decides := func(name string, want bool) {
		t.Helper()
		proctest.Eventually(t, 30*time.Second, func() error {
			if got := allowed(m.check(t, name)); got != want {
				return fmt.Errorf("allowed %v: %s", got, m.log)
			}
			return nil
		})
	}
	failing := func(name, why string) {
		t.Helper()
		proctest.Eventually(t, 30*time.Second, func() error {
			for _, p := range problems(t, state) {
				if p.Policy == name && strings.Contains(p.Reason, why) {
					return nil
				}
			}
			return fmt.Errorf("%s: %v", why, problems(t, state))
		})
	}
	failing("default/remote", "no such file")
	decides("default/remote", false)
	writeFile(t, filepath.Join(ours, "token"), "one\n")
	decides("default/remote", true)
	token.Store("Bearer two")
	failing("default/remote", "Unauthorized")
	decides("default/remote", true) // the last good one
	if err := os.WriteFile(filepath.Join(ours, "token"), []byte("two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, 30*time.Second, func() error {
		for _, p := range problems(t, state) {
			if p.Policy == "default/remote" {
				return fmt.Errorf("%s", p.Reason)
			}
		}
		return nil
	})
	failing("default/other", "no such file")
	if a := leaked.Load(); a != nil {
		t.Errorf("another host was shown %v", a)
	}
	if log := m.log.String(); strings.Contains(log, "Bearer") {
		t.Errorf("a token is in the log: %s", log)
	}
}

// TestCredentialsFor: a policy gets the files of its own host, and never the folder with
// those of all.
func TestCredentialsFor(t *testing.T) {
	r := &remotes{credentials: "/c"}
	for address, want := range map[string]string{
		"https://a.example/b": "/c/a.example", "https://a.example:8443/b": "/c/a.example:8443", "oci://a.example/b:1": "/c/a.example",
		"https://./b": "", "https://../b": "", "oci://./b": "", "https://a%2fb/b": "", "https:///b": "", "file:///b": "", "": "",
	} {
		c := r.credentialsFor(&configpb.Bundle{Url: address, Credentials: &configpb.BundleCredentials{TokenFile: "a.example/token"}})
		if c.Folder != want || c.TokenFile != "a.example/token" {
			t.Errorf("%s: %q in %q, want %q", address, c.TokenFile, c.Folder, want)
		}
	}
}
