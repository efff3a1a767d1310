package kubernetes

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/kubetest"
	"github.com/writ-mesh/writ/internal/pkitest"
)

// TestSecrets holds the Secrets of a stand-in and of a real cluster to the same.
func TestSecrets(t *testing.T) {
	t.Parallel()
	kubetest.Both(t, func(t *testing.T, api *kubetest.Cluster) {
		for name, test := range map[string]func(*testing.T, *kubetest.Cluster){
			"life": secretsLife, "rewritten": secretsRewritten, "foreign": secretsForeign, "two writers": secretsOfTwo,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, api)
			})
		}
	})
}

// secretsLife is the life of a Secret: it appears with its account, in the namespaces
// that are named and nowhere else, comes back when it is removed, is put right when
// somebody changes it, and is kept by an authority that starts again.
func secretsLife(t *testing.T, api *kubetest.Cluster) {
	api.Namespace(t, "life")
	api.Namespace(t, "life-other")
	api.Account(t, "life-other", billing)
	api.Account(t, "life", "first")
	h := follow(t, api, "life", withSecrets)
	h.good("first", nil)
	uid := api.Account(t, "life", billing)
	s, leaf := h.good(billing, nil)
	if !marked(s.Metadata, h.kept(billing).id) || !s.Metadata.ownedBy(uid) {
		t.Errorf("its metadata is %+v", s.Metadata)
	}
	if (&harness{t: t, api: api, ns: "life-other"}).secret(billing) != nil {
		t.Error("there is one in another namespace")
	}
	fresh := func(l *x509.Certificate, _ *secret) bool { return !l.Equal(leaf) }

	api.Delete(t, h.path(billing))
	_, leaf = h.good(billing, fresh)

	h.patch(h.path(billing), map[string]any{"data": map[string]any{keyFile: []byte("x")}, "metadata": map[string]any{"labels": map[string]any{"team": "money"}}})
	_, leaf = h.good(billing, fresh)
	own, key := pkitest.NewRoot(t, td.Name()).Issue(t, pkitest.Leaf(h.id(billing), time.Hour))
	h.patch(h.path(billing), map[string]any{"data": map[string]any{chainFile: own, keyFile: key}})
	_, leaf = h.good(billing, fresh)
	another := h.secret("first").Data // good, and that of another account
	h.patch(h.path(billing), map[string]any{"data": map[string]any{chainFile: another[chainFile], keyFile: another[keyFile]}})
	_, leaf = h.good(billing, fresh)
	h.patch(h.path(billing), map[string]any{"data": map[string]any{rootsFile: own}})
	s, _ = h.good(billing, func(l *x509.Certificate, _ *secret) bool { return l.Equal(leaf) })
	if s.Metadata.Labels["team"] != "money" {
		t.Errorf("what somebody added is gone: %v", s.Metadata.Labels)
	}

	h.states("current", 2)
	issued := h.authority.count(h.id(billing))
	h.restart()
	h.states("current", 2)
	if again := h.secret(billing); again.Metadata.Version != s.Metadata.Version || h.authority.count(h.id(billing)) != issued {
		t.Errorf("after a restart it is version %s, and %d were issued; want %s, %d", again.Metadata.Version, h.authority.count(h.id(billing)), s.Metadata.Version, issued)
	}

	// An account of the same name is another one.
	api.Delete(t, "/api/v1/namespaces/life/serviceaccounts/billing")
	uid = api.Account(t, "life", billing)
	h.good(billing, func(l *x509.Certificate, s *secret) bool { return !l.Equal(leaf) && s.Metadata.ownedBy(uid) })
}

// secretsRewritten: at half of a certificate's life, when it is revoked, when
// the roots change and when another of them signs.
func secretsRewritten(t *testing.T, api *kubetest.Cluster) {
	h := follow(t, api, "rewritten", withSecrets)
	api.Account(t, h.ns, billing)
	s, leaf := h.good(billing, nil)
	same := func(l *x509.Certificate, _ *secret) bool { return l.Equal(leaf) }
	fresh := func(l *x509.Certificate, n *secret) bool {
		return !l.Equal(leaf) && !bytes.Equal(n.Data[keyFile], s.Data[keyFile])
	}

	h.clock.forward(14 * time.Hour)
	s, leaf = h.good(billing, fresh)
	h.authority.set(func() { h.authority.revoked[leaf.SerialNumber.String()] = true })
	s, leaf = h.good(billing, fresh)

	old, next := h.authority.roots[0], pkitest.NewRoot(t, td.Name())
	h.authority.change(next, old)
	h.good(billing, same) // two roots, and the old one signs
	h.expect(nil, []string{keyID(old)}, "rewritten/istio.billing")
	h.clock.forward(2 * time.Minute)
	h.expect(h.current, []string{keyID(old)})

	h.authority.change(old, next)
	h.good(billing, same)
	h.clock.forward(replaceWithin)
	_, leaf = h.good(billing, func(l *x509.Certificate, _ *secret) bool { return hex.EncodeToString(l.AuthorityKeyId) == keyID(next) })
	h.expect(nil, []string{keyID(old), keyID(next)}, "rewritten/istio.billing") // pods may have the one before
	h.clock.forward(2 * time.Minute)
	h.expect(h.current, []string{keyID(next)})

	h.authority.change(next)
	h.good(billing, same)
}

func keyID(r *pkitest.Root) string { return hex.EncodeToString(r.Cert.SubjectKeyId) }

func (h *harness) current(r *Report) bool { return r.Current }

// expect waits until the report is the one that is wanted.
func (h *harness) expect(ok func(*Report) bool, authorities []string, waiting ...string) {
	h.t.Helper()
	slices.Sort(authorities)
	h.eventually(billing, func(*secret) error {
		r := h.Report()
		if !slices.Equal(r.Authorities, authorities) || !slices.Equal(r.Waiting, waiting) || ok != nil && !ok(r) {
			return errors.New(strings.Join(append(r.Authorities, r.Waiting...), " "))
		}
		return nil
	})
}

// secretsForeign: a Secret that somebody else made is never changed, nothing is
// issued for it, and it is said; when it is removed ours takes its place.
func secretsForeign(t *testing.T, api *kubetest.Cluster) {
	api.Namespace(t, "foreign")
	taken := map[string]*secret{
		"plain":        {Type: "Opaque"},
		"citadel":      {Type: secretType},
		"trust-domain": {Type: secretType, Metadata: metadata{Labels: map[string]string{managedBy: manager}, Annotations: map[string]string{spiffeID: "spiffe://other.org/ns/foreign/sa/trust-domain"}}},
		"name-only":    {Type: "Opaque", Metadata: metadata{Labels: map[string]string{managedBy: manager}, Annotations: map[string]string{spiffeID: "spiffe://example.org/ns/foreign/sa/name-only"}}},
	}
	before := map[string]string{}
	for account, foreign := range taken {
		api.Account(t, "foreign", account)
		foreign.Metadata.Name, foreign.Data = "istio."+account, map[string][]byte{keyFile: []byte("theirs")}
		if _, err := api.Call(t, http.MethodPost, "/api/v1/namespaces/foreign/secrets", foreign); err != nil {
			t.Fatal(err)
		}
		before[account] = (&harness{t: t, api: api, ns: "foreign"}).secret(account).Metadata.Version
	}
	h := follow(t, api, "foreign", withSecrets)
	h.states("foreign", 4)
	for account := range taken {
		if now := h.secret(account); now.Metadata.Version != before[account] || string(now.Data[keyFile]) != "theirs" || h.authority.count(h.id(account)) != 0 {
			t.Errorf("%s: it is %+v now, %d were issued", account, now.Metadata, h.authority.count(h.id(account)))
		}
		if !strings.Contains(h.log.String(), "secret=foreign/istio."+account+" error=\"there is a Secret of this name that writ-ca did not make") {
			t.Errorf("%s: the log says %s", account, h.log)
		}
	}
	if r := h.Report(); !r.Current || len(r.Authorities) != 0 {
		t.Errorf("they hold up a rotation: %+v", r)
	}
	for account := range taken {
		h.rest(account)
		api.Delete(t, h.path(account))
	}
	h.clock.forward(retryMax)
	for account := range taken {
		h.good(account, nil)
	}
}

// TestForeignSecretsAreNotRead: of what is not ours only the metadata is asked for.
func TestForeignSecretsAreNotRead(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	for account, s := range map[string]*secret{"billing": {Type: secretType}, "web": {Metadata: metadata{Labels: map[string]string{managedBy: manager}}}} {
		f.Account(t, "shop", account)
		s.Metadata.Name = "istio." + account
		if _, err := f.Call(t, http.MethodPost, "/api/v1/namespaces/shop/secrets", s); err != nil {
			t.Fatal(err)
		}
	}
	h := follow(t, f.Cluster, "shop", withSecrets)
	h.states("foreign", 2)
	if n := f.Asked("GET secrets"); n != 0 {
		t.Errorf("a whole Secret was read %d times", n)
	}
	f.Account(t, "shop", "ours")
	h.good("ours", nil)
	if f.Asked("GET metadata of secrets") < 2 {
		t.Error("nothing is counted")
	}
}

// TestSecretsWhileTheAPIIsAway: what was certified and could not be written is written
// later, and is not certified again with each try; what is refused is said.
func TestSecretsWhileTheAPIIsAway(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	h := follow(t, f.Cluster, "shop", withSecrets)
	f.Account(t, "shop", "other")
	h.states("current", 1)
	f.Refuse(func(r *http.Request) int {
		if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/secrets") {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	f.Account(t, "shop", billing)
	h.states("failed", 1)
	for range 2 {
		h.rest(billing)
		before := f.Asked("POST secrets")
		h.clock.forward(retryMax)
		h.eventually("other", func(*secret) error {
			if f.Asked("POST secrets") == before {
				return errors.New("it is not tried again")
			}
			return nil
		})
	}
	if n := h.authority.count(h.id(billing)); n != 1 {
		t.Errorf("%d were issued", n)
	}
	if !strings.Contains(h.log.String(), "503") || strings.Contains(h.log.String(), "PRIVATE") {
		t.Errorf("the log says %s", h.log)
	}
	h.rest(billing)
	f.Refuse(nil)
	h.clock.forward(retryMax)
	h.good(billing, nil)
	if n := h.authority.count(h.id(billing)); n != 1 {
		t.Errorf("%d were issued", n)
	}

	// An authority that cannot issue does not harm what is there.
	before := h.secret(billing)
	h.authority.set(func() { h.authority.refuse = errors.New("the ledger is away") })
	h.clock.forward(14 * time.Hour)
	h.states("failed", 2)
	if now := h.secret(billing); now.Metadata.Version != before.Metadata.Version {
		t.Error("it was changed")
	}
	h.rest(billing)
	h.rest("other")
	h.authority.set(func() { h.authority.refuse = nil })
	h.clock.forward(retryMax)
	h.states("current", 2)
}

// secretsOfTwo: two authorities over one ledger keep the same Secrets and come to
// rest.
func secretsOfTwo(t *testing.T, api *kubetest.Cluster) {
	one := follow(t, api, "two", withSecrets)
	two := &harness{t: t, api: api, ns: one.ns, authority: one.authority, clock: one.clock, config: one.config, log: one.log}
	two.run()
	t.Cleanup(func() { two.stop() })
	for _, name := range []string{"a", "b", "c", "d"} {
		api.Account(t, one.ns, name)
	}
	for _, h := range []*harness{one, two} {
		h.states("current", 4)
	}
	one.clock.forward(14 * time.Hour)
	for _, name := range []string{"a", "b", "c", "d"} {
		one.good(name, func(l *x509.Certificate, _ *secret) bool {
			return l.NotAfter.After(one.clock.now().Add(12 * time.Hour))
		})
	}
	for _, h := range []*harness{one, two} {
		h.states("current", 4)
	}
}
