package nodeattest_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/nodeattest"
	"github.com/writ-mesh/writ/internal/kubetest"
)

// TestRealCluster: tokens that a real API server made, and some that it did not, are
// judged by its TokenReview and by its keys, asked for by a service account that may do
// what deploy/kubernetes/ca.yaml says and no more.
func TestRealCluster(t *testing.T) {
	c := kubetest.Start(t)
	c.Namespace(t, "shop")
	c.Apply(t, "../../deploy/kubernetes/ca.yaml")
	c.Node(t, "n1")
	for _, name := range []string{"nodeagent", "pilot", "gone"} {
		c.Account(t, "writ-system", name)
	}
	c.Account(t, "shop", "nodeagent")

	k := nodeattest.Kubernetes{
		Issuer: kubetest.Issuer, Audiences: []string{audience}, NodeAgents: []string{agentSA, "writ-system/gone"}, Services: map[string]string{pilotSA: "pilot"},
		CAFile: c.CAFile, TokenFile: write(t, "token", []byte(c.Token(t, "writ-system", "ca", "", "", kubetest.Issuer))),
	}
	jwks, err := c.Call(t, http.MethodGet, "/openid/v1/jwks", nil)
	if err != nil {
		t.Fatal(err)
	}
	byAPI, byKeys, byFile, byBoth := k, k, k, k
	byAPI.TokenReview, byBoth.TokenReview = c.URL, c.URL
	byKeys.JWKSURL, byBoth.JWKSURL = c.URL+"/openid/v1/jwks", c.URL+"/openid/v1/jwks"
	byFile.JWKSFile = write(t, "jwks.json", jwks)

	token := func(namespace, account, pod, node string) string {
		return c.Token(t, namespace, account, pod, c.Pod(t, namespace, pod, account, node), audience)
	}
	agentUID := c.Pod(t, "writ-system", "nodeagent-1", "nodeagent", "n1")
	made := func(change func(claims, map[string]any)) string {
		own := map[string]any{
			"namespace": "writ-system", "serviceaccount": map[string]any{"name": "nodeagent", "uid": "u"},
			"pod": map[string]any{"name": "nodeagent-1", "uid": agentUID}, "node": map[string]any{"name": "n1"},
		}
		now := time.Now()
		std := claims{
			"iss": kubetest.Issuer, "aud": []string{audience}, "sub": "system:serviceaccount:writ-system:nodeagent",
			"iat": now.Add(-time.Hour).Unix(), "nbf": now.Add(-time.Hour).Unix(), "exp": now.Add(time.Hour).Unix(), "kubernetes.io": own,
		}
		change(std, own)
		return c.Sign(t, std)
	}
	past := time.Now().Add(-time.Minute).Unix()
	deletedPod := token("writ-system", "nodeagent", "nodeagent-2", "n1")
	c.Delete(t, "/api/v1/namespaces/writ-system/pods/nodeagent-2")
	samePod := token("writ-system", "nodeagent", "nodeagent-3", "n1")
	c.Delete(t, "/api/v1/namespaces/writ-system/pods/nodeagent-3")
	c.Pod(t, "writ-system", "nodeagent-3", "nodeagent", "n1")
	deletedAccount := token("writ-system", "gone", "gone-1", "n1")
	c.Delete(t, "/api/v1/namespaces/writ-system/serviceaccounts/gone")
	stranger := newSigner(t, 0, "k1")

	const agent, pilot = "/writ/node/n1", "/writ/pilot"
	for _, tc := range []struct {
		name, token    string
		byAPI, offline string // who it is; empty for nobody
	}{
		{"a node agent", c.Token(t, "writ-system", "nodeagent", "nodeagent-1", agentUID, audience), agent, agent},
		{"a service", token("writ-system", "pilot", "pilot-1", "n1"), pilot, pilot},
		{"an account of that name elsewhere", token("shop", "nodeagent", "nodeagent-1", "n1"), "", ""},
		{"for the API itself", c.Token(t, "writ-system", "nodeagent", "nodeagent-1", agentUID, kubetest.Issuer), "", ""},
		{"for another audience", c.Token(t, "writ-system", "nodeagent", "nodeagent-1", agentUID, "vault"), "", ""},
		{"not bound to a pod", c.Token(t, "writ-system", "nodeagent", "", "", audience), "", ""},
		{"bound to a pod on no node", token("writ-system", "nodeagent", "nodeagent-4", ""), "", ""},
		{"expired", made(func(std claims, _ map[string]any) { std["exp"] = past }), "", ""},
		{"of another cluster", stranger.token(t, projected("writ-system", "nodeagent", "n1")), "", ""},
		{"of another issuer", made(func(std claims, _ map[string]any) { std["iss"] = "https://other" }), "", ""},
		// Keys do not know what is gone: such a token is good until it expires.
		{"of a pod that is gone", deletedPod, "", agent},
		{"of a pod that was made anew", samePod, "", agent},
		{"of an account that is gone", deletedAccount, "", agent},
		{"of a pod that never was", made(func(_ claims, own map[string]any) { own["pod"] = map[string]any{"name": "x", "uid": "x"} }), "", agent},
	} {
		for how, cfg := range map[string]nodeattest.Kubernetes{"TokenReview": byAPI, "keys from the API": byKeys, "keys from a file": byFile, "both": byBoth} {
			want := tc.offline
			if cfg.TokenReview != "" {
				want = tc.byAPI
			}
			e, err := nodeattest.New(nodeattest.Config{Kubernetes: []nodeattest.Kubernetes{cfg}}, td, time.Now).Kubernetes(t.Context(), tc.token)
			if errors.Is(err, nodeattest.ErrUnavailable) || (err == nil) != (want != "") || err == nil && e.ID.Path() != want {
				t.Errorf("%s, by %s: %s, %v, want %q", tc.name, how, e.ID, err, want)
			}
		}
	}

	// The token expires while nobody asks the API.
	late := func() time.Time { return time.Now().Add(11 * time.Minute) }
	a := nodeattest.New(nodeattest.Config{Kubernetes: []nodeattest.Kubernetes{byFile}}, td, late)
	if e, err := a.Kubernetes(t.Context(), c.Token(t, "writ-system", "nodeagent", "nodeagent-1", agentUID, audience)); err == nil {
		t.Errorf("after its time it is %s", e.ID)
	}
	// Who may not ask cannot tell a good token from a bad one.
	byAPI.TokenFile = write(t, "token", []byte(c.Token(t, "shop", "nodeagent", "", "", kubetest.Issuer)))
	a = nodeattest.New(nodeattest.Config{Kubernetes: []nodeattest.Kubernetes{byAPI}}, td, time.Now)
	if _, err := a.Kubernetes(t.Context(), c.Token(t, "writ-system", "nodeagent", "nodeagent-1", agentUID, audience)); !errors.Is(err, nodeattest.ErrUnavailable) {
		t.Errorf("without permission to ask: %v", err)
	}
}
