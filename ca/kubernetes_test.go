package ca

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/kubetest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const billingID = "spiffe://example.org/ns/shop/sa/billing"

// inCluster has the authority follow a cluster's namespace shop.
func inCluster(api *kubetest.Cluster, change func(*Config)) func(*Config) {
	return func(c *Config) {
		c.PlacementWait = 0
		c.Kubernetes.API, c.Kubernetes.CAFile, c.Kubernetes.TokenFile = api.URL, api.CAFile, api.TokenFile
		c.Kubernetes.Namespaces = []string{"shop"}
		change(c)
	}
}

func (h *harness) issueAs(svid *x509svid.SVID, id string) error {
	h.t.Helper()
	_, der := request(h.t, "")
	_, err := h.as(svid).Issue(h.t.Context(), &capb.IssueRequest{SpiffeId: id, Csr: der})
	return err
}

// TestServiceAccountsAreRegistered: a node where a pod runs as a service account is
// told of its identity and gets it, another one is not and does not; what an
// administrator registered is not touched.
func TestServiceAccountsAreRegistered(t *testing.T) {
	t.Parallel()
	kubetest.Both(t, func(t *testing.T, api *kubetest.Cluster) {
		api.Namespace(t, "shop")
		api.Namespace(t, "other")
		h := start(t, inCluster(api, func(c *Config) { c.Kubernetes.Registrations, c.Kubernetes.NodePrefix = "nodes", "n" }))
		one, two := h.mint(nodeID), h.mint(n2ID)
		next := h.watch(one, nil)
		if u := next(); !u.GetComplete() || len(u.GetPut()) != 0 {
			t.Errorf("at first %v", u)
		}
		own := h.register(billingID, "n2", "unix:uid:7")
		wantCode(t, h.issueAs(one, billingID), codes.PermissionDenied)

		api.Account(t, "shop", "billing")
		api.Account(t, "other", "billing")
		api.Pod(t, "other", "billing-1", "billing", "1")
		api.Pod(t, "shop", "billing-1", "billing", "1")
		u := next()
		if len(u.GetPut()) != 1 || u.GetPut()[0].GetSpiffeId() != billingID || strings.Join(u.GetPut()[0].GetFacts(), " ") != "k8s:ns:shop k8s:sa:billing" {
			t.Errorf("told %v", u)
		}
		wantCode(t, h.issueAs(one, billingID), codes.OK)
		wantCode(t, h.issueAs(one, "spiffe://example.org/ns/other/sa/billing"), codes.PermissionDenied)
		h.revokeOwn(own, two)
		wantCode(t, h.issueAs(two, billingID), codes.PermissionDenied)

		got := h.registered(&capb.ListRegistrationsRequest{SpiffeId: billingID})
		if len(got) != 1 || got[0].GetNode() != "n1" || got[0].GetCreatedBy() != "kubernetes" {
			t.Errorf("registered %v", got)
		}
		// It is known after a restart, and what went meanwhile goes.
		kept := h.register(ratingsID, "n1", "unix:uid:8")
		if u := next(); len(u.GetPut()) != 1 {
			t.Errorf("told %v", u)
		}
		api.Account(t, "shop", "web")
		api.Pod(t, "shop", "web-1", "web", "1")
		if u := next(); len(u.GetPut()) != 1 {
			t.Errorf("told %v", u)
		}
		if err := h.stop(); err != nil {
			t.Fatal(err)
		}
		api.Delete(t, "/api/v1/namespaces/shop/serviceaccounts/billing")
		h.run()
		h.eventually("only the web is registered", func() bool {
			got := h.registered(&capb.ListRegistrationsRequest{})
			return len(got) == 2 && (got[0].GetId() == kept.GetId() || got[1].GetId() == kept.GetId())
		})
		h.eventually("billing is nobody on the node", func() bool { return h.issueAs(one, billingID) != nil })
		wantCode(t, h.issueAs(one, "spiffe://example.org/ns/shop/sa/web"), codes.OK)
		api.Delete(t, "/api/v1/namespaces/shop/serviceaccounts/web")
		h.eventually("only the administrator's is left", func() bool {
			got := h.registered(&capb.ListRegistrationsRequest{})
			return len(got) == 1 && got[0].GetId() == kept.GetId()
		})
		var registered, dropped int
		for _, r := range h.entries() {
			e, err := r.Entry()
			if err != nil {
				t.Fatal(err)
			}
			if e.Actor == clusterActor && e.Kind == ledger.Registered {
				registered++
			}
			if e.Actor == clusterActor && e.Kind == ledger.Unregistered {
				dropped++
			}
		}
		if registered != 2 || dropped != 2 {
			t.Errorf("the ledger has %d registrations and %d that were dropped", registered, dropped)
		}
	})
}

// revokeOwn shows that what an administrator registered counts besides, and drops it.
func (h *harness) revokeOwn(own *capb.Registration, node *x509svid.SVID) {
	h.t.Helper()
	wantCode(h.t, h.issueAs(node, billingID), codes.OK)
	if _, err := h.registrations().DeleteRegistration(h.t.Context(), &capb.DeleteRegistrationRequest{Id: own.GetId()}); err != nil {
		h.t.Fatal(err)
	}
}

// secretLeaf reads the Secret of billing as a pod has it, nil if it is not whole; roots
// is how many it trusts.
func secretLeaf(t *testing.T, api *kubetest.Cluster) (leaf *x509.Certificate, roots int) {
	t.Helper()
	data, err := api.Call(t, http.MethodGet, "/api/v1/namespaces/shop/secrets/istio.billing", nil)
	if err != nil {
		return nil, 0
	}
	var s struct{ Data map[string][]byte }
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(s.Data["cert-chain.pem"], s.Data["key.pem"])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.Data["root-cert.pem"])
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Fatalf("the Secret: %v", err)
	}
	return pair.Leaf, strings.Count(string(s.Data["root-cert.pem"]), "BEGIN")
}

// TestSecretsInARotation: the root is not replaced before every Secret has the new one,
// nor the old one dropped before every Secret has a certificate of the new; the Secret
// that holds it up is named. At no moment does a Secret not fit itself.
func TestSecretsInARotation(t *testing.T) {
	t.Parallel()
	api := kubetest.NewFake(t)
	api.Account(t, "shop", "billing")
	h := start(t, inCluster(api.Cluster, func(c *Config) {
		c.Kubernetes.Secrets, c.Kubernetes.SecretTTL, c.Kubernetes.SecretDelay = true, config.Duration(time.Minute), config.Duration(300*time.Millisecond)
	}))
	var leaf *x509.Certificate
	h.eventually("the Secret is there", func() bool { leaf, _ = secretLeaf(t, api.Cluster); return leaf != nil })
	if got := h.ledger(&capb.ListCertificatesRequest{SpiffeId: billingID}); len(got) != 1 || got[0].GetRequester() != "spiffe://example.org/writ/ca" {
		t.Errorf("the ledger has %v", got)
	}
	old := activeOf(h.status())
	away := func(r *http.Request) int {
		if r.Method == http.MethodPatch {
			return http.StatusServiceUnavailable
		}
		return 0
	}
	api.Refuse(away)
	h.rotate(&capb.RotateRootRequest{})
	h.eventually("the Secret is named", func() bool { return strings.Contains(gateOf(h.status()), "/writ/ca has not acknowledged") })
	st := h.step(capb.RotationStep_ROTATION_STEP_DISTRIBUTING)
	if got := gateOf(st); !strings.Contains(got, "shop/istio.billing") || activeOf(st) != old {
		t.Errorf("the gate is held by %q", got)
	}
	api.Refuse(nil)
	h.step(capb.RotationStep_ROTATION_STEP_DRAINING)
	if now, roots := secretLeaf(t, api.Cluster); roots != 2 {
		t.Errorf("it has %d roots, %v", roots, now.SerialNumber)
	}
	h.eventually("the rotation is done", func() bool { secretLeaf(t, api.Cluster); return h.status().GetRotation() == nil })
	h.eventually("it has the new root alone", func() bool { _, roots := secretLeaf(t, api.Cluster); return roots == 1 })
	if now, _ := secretLeaf(t, api.Cluster); now.Equal(leaf) || activeOf(h.status()) == old {
		t.Error("it has the old certificate")
	}

	// Who is revoked gets no certificate, and his Secret no other one.
	leaf, _ = secretLeaf(t, api.Cluster)
	h.revoke(byID(billingID))
	api.Delete(t, "/api/v1/namespaces/shop/secrets/istio.billing")
	before := len(h.ledger(&capb.ListCertificatesRequest{SpiffeId: billingID}))
	h.eventually("it is refused", func() bool {
		for _, r := range h.entries() {
			if e, err := r.Entry(); err == nil && e.Kind == ledger.Refused && e.Subject == billingID {
				return true
			}
		}
		return false
	})
	if now, _ := secretLeaf(t, api.Cluster); now != nil || len(h.ledger(&capb.ListCertificatesRequest{SpiffeId: billingID})) != before {
		t.Errorf("it got %v after %v", now, leaf.SerialNumber)
	}
}
