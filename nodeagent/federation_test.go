package nodeagent_test

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// federatedWith is what the authority says of other trust domains.
func federatedWith(domains map[string]*pkitest.Root) *capb.FederatedBundles {
	out := new(capb.FederatedBundles)
	for name, root := range domains {
		out.Bundles = append(out.Bundles, &capb.FederatedBundle{TrustDomain: name, Roots: [][]byte{root.Cert.Raw}, Jwks: []byte(`{"keys":[]}`)})
	}
	return out
}

// callerWith calls with a certificate of its own.
func callerWith(t *testing.T, r *rig, at netip.AddrPort, pair tls.Certificate) *caller {
	c := newCaller(t, r, at)
	c.config.Certificates = nil
	// Whatever authorities the server names.
	c.config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return c
}

// refused waits until the Envoy does not take a caller.
func (c *caller) refused(t *testing.T, what string) {
	t.Helper()
	proctest.Eventually(t, bound, func() error {
		if _, _, _, err := c.call(t.Context()); err == nil {
			return errors.New(what + ": the call went through")
		}
		return nil
	})
}

// TestOtherTrustDomainsInEnvoy: a real Envoy takes the identities of another trust
// domain by the roots that the authority has of it at the moment, and of ours those
// that are not revoked.
func TestOtherTrustDomainsInEnvoy(t *testing.T) {
	t.Parallel()
	for i, binary := range envoytest.All(t) {
		t.Run([]string{"newest", "oldest"}[i], func(t *testing.T) {
			t.Parallel()
			at := address(t)
			r := newRig(t, time.Hour)
			old, second := pkitest.NewRoot(t, "b.example"), pkitest.NewRoot(t, "b.example")
			r.ca.others.known.Set(federatedWith(map[string]*pkitest.Root{"b.example": old}))
			r.pilot.set(t, "web", listener(t, at, "FEDERATED"))
			r.pilot.set(t, "answer", answer("one"))
			r.start(t)
			r.connected(t)
			r.register(t, startEnvoy(t, r, binary).PID())

			leaf := func(root *pkitest.Root, id string) *caller {
				return callerWith(t, r, at, root.Pair(t, pkitest.Leaf(id, time.Hour)))
			}
			const b = "spiffe://b.example/ns/default/sa/caller"
			ours, theirs, theirsNext := newCaller(t, r, at), leaf(old, b), leaf(second, b)
			ours.want(t, "ours", "one")
			theirs.want(t, "theirs", "one")
			theirsNext.refused(t, "of a root that nobody knows")
			leaf(old, "spiffe://"+domain+"/ns/default/sa/caller").refused(t, "ours, signed by them")

			revoked := newCaller(t, r, at)
			r.ca.feed.list.Set(&capb.RevocationList{Sequence: 1, Crls: [][]byte{
				crlOf(t, r.root, revoked.config.Certificates[0].Leaf.SerialNumber.Int64()),
			}})
			revoked.refused(t, "ours, revoked")
			ours.want(t, "ours, while another is revoked", "one")
			theirs.want(t, "theirs, while one of ours is revoked", "one")

			r.ca.others.known.Set(federatedWith(map[string]*pkitest.Root{"b.example": second}))
			theirsNext.want(t, "theirs, by their new root", "one")
			theirs.refused(t, "theirs, by their old root")

			l := theirsNext.load(t.Context())
			r.agent.Kill() // who starts again does not know at once which others there are
			r.start(t)
			r.connected(t)
			l.end(t)

			r.ca.others.known.Set(federatedWith(nil))
			theirsNext.refused(t, "theirs, who are not accepted any more")
			ours.want(t, "ours, in the end", "one")
		})
	}
}

// TestBundleOfFederationIsAcknowledged: who verifies by the secret with other trust
// domains is waited for too when our own roots change, and one that does not take the
// others gets ours alone.
func TestBundleOfFederationIsAcknowledged(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.ca.others.known.Set(federatedWith(map[string]*pkitest.Root{"b.example": pkitest.NewRoot(t, "b.example")}))
	r.start(t)
	d, err := secretv3.NewSecretDiscoveryServiceClient(r.dial(t)).DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"FEDERATED"}}); err != nil {
		t.Fatal(err)
	}
	var version string
	next := func(refuse bool) {
		t.Helper()
		resp, err := d.Recv()
		if err != nil {
			t.Fatal(err)
		}
		version = resp.GetResources()[0].GetVersion()
		ack := &discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.GetNonce()}
		if refuse {
			ack.ErrorDetail = status.New(codes.Internal, "no").Proto()
		}
		if err := d.Send(ack); err != nil {
			t.Fatal(err)
		}
	}
	next(false)
	r.ca.hears(t, "the first bundle is acknowledged", func(req *capb.WatchBundleRequest) bool {
		return req.GetAcknowledged() == 1 && len(req.GetWaiting()) == 0
	})
	r.ca.bundle.Set([][]byte{r.root.Cert.Raw, pkitest.NewRoot(t, domain).Cert.Raw})
	r.ca.hears(t, "the proxy holds up the second", func(req *capb.WatchBundleRequest) bool {
		return req.GetAcknowledged() == 1 && slices.Equal(req.GetWaiting(), []string{proxyID})
	})
	next(true)
	refused := version
	next(false)
	if version == refused {
		t.Error("what was refused is sent again")
	}
	r.ca.hears(t, "the second bundle is acknowledged", func(req *capb.WatchBundleRequest) bool {
		return req.GetAcknowledged() == 2 && len(req.GetWaiting()) == 0
	})
}
