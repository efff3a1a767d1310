package kubernetes

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/kubetest"
	"github.com/writ-mesh/writ/internal/proctest"
)

func onItsNodes(c *Config) { c.Registrations, c.NodePrefix = onNodes, "a-" }

// placed waits until the accounts have these places.
func (h *harness) placed(want ...string) {
	h.t.Helper()
	var got []string
	proctest.Eventually(h.t, budget, func() error {
		places, _, ok := h.Placed()
		if got = nil; !ok {
			return fmt.Errorf("it is not known")
		}
		for _, p := range places {
			got = append(got, strings.TrimSpace(p.ServiceAccount+" "+p.Node))
			if p.Namespace != h.ns {
				return fmt.Errorf("there is %v", p)
			}
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
}

// TestPlaces: an account is where pods run as it, a minute longer than they do, and
// nowhere when it is gone.
func TestPlaces(t *testing.T) {
	t.Parallel()
	kubetest.Both(t, func(t *testing.T, api *kubetest.Cluster) {
		h := follow(t, api, "places", onItsNodes)
		api.Namespace(t, "places-other")
		for _, ns := range []string{h.ns, "places-other"} {
			api.Account(t, ns, billing)
			api.Account(t, ns, "web")
			api.Pod(t, ns, "other-1", "web", "n9")
		}
		pods := "/api/v1/namespaces/places/pods/"
		api.Pod(t, h.ns, "billing-1", billing, "n1")
		api.Pod(t, h.ns, "billing-2", billing, "n1")
		api.Pod(t, h.ns, "billing-3", billing, "n2")
		api.Pod(t, h.ns, "billing-4", billing, "") // not scheduled
		h.placed("billing a-n1", "billing a-n2", "web a-n9")
		api.Delete(t, pods+"billing-1")
		api.Delete(t, pods+"billing-3")
		h.eventuallyGone("billing-3")
		h.placed("billing a-n1", "billing a-n2", "web a-n9")
		if _, soon, _ := h.Placed(); soon.Before(time.Now()) || soon.After(time.Now().Add(linger)) {
			t.Errorf("it is to be asked again at %s", soon)
		}
		h.clock.forward(linger)
		h.placed("billing a-n1", "web a-n9")
		// Back in time it stays.
		api.Pod(t, h.ns, "billing-5", billing, "n2")
		h.placed("billing a-n1", "billing a-n2", "web a-n9")
		api.Delete(t, pods+"billing-5")
		h.eventuallyGone("billing-5")
		h.placed("billing a-n1", "billing a-n2", "web a-n9")
		h.clock.forward(linger / 2)
		api.Pod(t, h.ns, "billing-6", billing, "n2")
		h.placed("billing a-n1", "billing a-n2", "web a-n9")
		h.clock.forward(linger)
		h.placed("billing a-n1", "billing a-n2", "web a-n9")
		api.Delete(t, "/api/v1/namespaces/places/serviceaccounts/billing")
		h.placed("web a-n9")
	})
}

// eventuallyGone waits until a pod is known to be gone.
func (h *harness) eventuallyGone(pod string) {
	h.t.Helper()
	proctest.Until(h.t, budget, pod+" is gone", func() bool {
		gone := true
		h.pods[0].each(func(n name, _ object) { gone = gone && n.name != pod })
		return gone
	})
}

// TestEverywhere: without nodes an account is everywhere, if its labels fit.
func TestEverywhere(t *testing.T) {
	t.Parallel()
	kubetest.Both(t, func(t *testing.T, api *kubetest.Cluster) {
		h := follow(t, api, "everywhere", func(c *Config) { c.Registrations, c.Selector = everywhere, "mesh=yes" })
		api.Account(t, h.ns, billing)
		api.Account(t, h.ns, "web")
		h.placed()
		label := func(value any) {
			h.patch("/api/v1/namespaces/everywhere/serviceaccounts/billing", map[string]any{"metadata": map[string]any{"labels": map[string]any{"mesh": value}}})
		}
		label("yes")
		h.placed("billing")
		label(nil)
		h.placed()
	})
}

// TestFollowing: a watch that ends goes on where it was, one that breaks too, and what
// the API has forgotten is listed anew.
func TestFollowing(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	for i := range 5 { // more than a page
		f.Account(t, "shop", fmt.Sprintf("a%d", i))
	}
	h := follow(t, f.Cluster, "shop", func(c *Config) { c.Registrations = everywhere })
	h.placed("a0", "a1", "a2", "a3", "a4")
	again := func(what string, lists int, do func()) {
		t.Helper()
		before, watches := f.Asked("LIST serviceaccounts"), f.Asked("WATCH serviceaccounts")
		do()
		proctest.Until(t, budget, what, func() bool { return f.Asked("WATCH serviceaccounts") > watches })
		account := fmt.Sprintf("b%d", f.Asked("WATCH serviceaccounts"))
		f.Account(t, "shop", account)
		h.placedHas(account)
		if got := f.Asked("LIST serviceaccounts") - before; min(got, 1) != lists {
			t.Errorf("%s: listed %d pages", what, got)
		}
	}
	again("a watch that ends", 0, f.Cut)
	again("what happened meanwhile", 0, func() {
		f.Refuse(func(*http.Request) int { return http.StatusServiceUnavailable })
		f.Cut()
		h.unknown()
		f.Refuse(nil)
		f.Delete(t, "/api/v1/namespaces/shop/serviceaccounts/a0")
		h.placedLacks("a0")
	})
	again("a bookmark is remembered", 0, func() {
		f.Pod(t, "shop", "x", "y", "z") // the version of another kind
		f.Bookmark(t)
		f.Forget()
		f.Cut()
	})
	again("the API has forgotten", 1, func() {
		f.Refuse(func(r *http.Request) int {
			if r.Method == http.MethodGet {
				return http.StatusServiceUnavailable
			}
			return 0
		})
		f.Cut()
		h.unknown()
		f.Delete(t, "/api/v1/namespaces/shop/serviceaccounts/a1")
		f.Forget()
		f.Refuse(nil)
		h.placedLacks("a1")
	})
}

// placedHas waits until an account has a place.
func (h *harness) placedHas(account string) {
	h.t.Helper()
	h.has(account, true)
}

// placedLacks waits until an account has none.
func (h *harness) placedLacks(account string) {
	h.t.Helper()
	h.has(account, false)
}

func (h *harness) has(account string, want bool) {
	h.t.Helper()
	proctest.Until(h.t, budget, account, func() bool {
		places, _, ok := h.Placed()
		return ok && slices.ContainsFunc(places, func(p Place) bool { return p.ServiceAccount == account }) == want
	})
}

// unknown waits until it is not known what there is.
func (h *harness) unknown() {
	h.t.Helper()
	proctest.Until(h.t, budget, "it is not known", func() bool { _, _, ok := h.Placed(); return !ok })
}

// TestListsAreWhole: a list whose pages the API forgets between is not believed, nor is
// one that it refuses.
func TestListsAreWhole(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	for i := range 5 {
		f.Account(t, "shop", fmt.Sprintf("a%d", i))
	}
	var asked int
	f.Refuse(func(r *http.Request) int {
		if asked++; strings.Contains(r.URL.RawQuery, "continue=") && asked < 6 {
			return http.StatusGone
		}
		return 0
	})
	h := follow(t, f.Cluster, "shop", func(c *Config) { c.Registrations = everywhere })
	h.placed("a0", "a1", "a2", "a3", "a4")
	f.Refuse(func(*http.Request) int { return http.StatusForbidden })
	f.Cut()
	h.unknown()
	proctest.Until(t, budget, "the log says why", func() bool { return strings.Contains(h.log.String(), "403") })
}

// TestLeastPermissions: what deploy/kubernetes/ca.yaml allows is enough for everything
// in the namespace where it is bound, and for nothing elsewhere.
func TestLeastPermissions(t *testing.T) {
	t.Parallel()
	api := kubetest.Shared(t)
	api.Namespace(t, "shop")
	api.Namespace(t, "other")
	api.Apply(t, "../../deploy/kubernetes/ca.yaml")
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(api.Token(t, "writ-system", "ca", "", "", kubetest.Issuer)), 0o600); err != nil {
		t.Fatal(err)
	}
	least := func(c *Config) {
		onItsNodes(c)
		c.Secrets, c.TokenFile = true, token
	}
	h := follow(t, api, "shop", least)
	api.Account(t, "shop", billing)
	api.Pod(t, "shop", "billing-1", billing, "n1")
	h.placed("billing a-n1")
	h.good(billing, nil)
	h.clock.forward(14 * time.Hour)
	h.good(billing, func(leaf *x509.Certificate, _ *secret) bool {
		return leaf.NotAfter.After(h.clock.now().Add(12 * time.Hour))
	})

	other := follow(t, api, "other", least)
	api.Account(t, "other", billing)
	proctest.Until(t, budget, "it is refused", func() bool { return strings.Count(other.log.String(), "403 Forbidden") >= 3 })
	if _, _, ok := other.Placed(); ok || other.secret(billing) != nil {
		t.Error("it knows the other namespace")
	}
}

// TestRestartedAPI: a real API server that is killed and comes back is followed on, and
// how it says that it does not remember is understood.
func TestRestartedAPI(t *testing.T) {
	t.Parallel()
	api := kubetest.Start(t)
	h := follow(t, api, "shop", func(c *Config) { c.Registrations, c.Secrets = everywhere, true })
	api.Account(t, "shop", billing)
	h.placed(billing)
	h.good(billing, nil)
	api.Restart(t)
	api.Account(t, "shop", "web")
	h.placed(billing, "web")
	h.good("web", nil)
	api.Delete(t, h.path(billing))
	h.good(billing, nil)

	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	if _, err := h.accounts[0].watch(ctx, "1"); !expired(err) {
		t.Errorf("a watch from long ago: %v", err)
	}
}

// TestOwnChangesHideNoOthers: what the writer put there counts until an event comes, and
// not if one has come that is newer.
func TestOwnChangesHideNoOthers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ known, before, after, want string }{
		{"5", "5", "6", "6"},
		{"7", "5", "6", "7"},
		{"", "5", "6", ""},
	} {
		w := &watcher{board: newBoard()}
		o := object{Metadata: metadata{Namespace: "shop", Name: "istio.billing", Version: tc.known}}
		if tc.known != "" {
			w.put(o)
		}
		o.Metadata.Version = tc.after
		w.follows(tc.before, o)
		if got := w.objects[o.name()].Metadata.Version; got != tc.want {
			t.Errorf("%+v: got %q", tc, got)
		}
	}
}

// FuzzEvent: whatever a line of a watch has, it is refused or has a version, and
// nothing is known without a name.
func FuzzEvent(f *testing.F) {
	for _, seed := range []string{
		`{"type":"ADDED","object":{"metadata":{"name":"a","namespace":"n","uid":"u","resourceVersion":"7"}}}`,
		`{"type":"DELETED","object":{"metadata":{"name":"a","namespace":"n","resourceVersion":"8"}}}`,
		`{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}`,
		`{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}`,
		`{"type":"ERROR","object":7}`, `{"type":"ADDED"}`, `{}`, `null`, `[`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		w := &watcher{board: newBoard()}
		version, err := w.take(line)
		if (version == "") != (err != nil) {
			t.Errorf("version %q, %v", version, err)
		}
		var e event
		if err == nil && (json.Unmarshal(line, &e) != nil || e.Type == "ERROR") {
			t.Errorf("%q was taken", line)
		}
	})
}

// TestWatchEndsWithItsContext: nothing is left running.
func TestWatchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	h := follow(t, f.Cluster, "shop", withSecrets)
	h.states("current", 0)
	done := make(chan struct{})
	go func() { h.stop(); close(done) }()
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatal("it goes on")
	}
}
